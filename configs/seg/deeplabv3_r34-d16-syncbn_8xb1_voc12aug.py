_base_ = ['./deeplabv3_r18-d16-syncbn_8xb1_voc12aug.py']

model = dict(backbone=dict(depth=34, init_cfg=dict(checkpoint='torchvision://resnet34')))
