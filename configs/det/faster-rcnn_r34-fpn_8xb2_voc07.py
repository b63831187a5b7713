_base_ = ['./faster-rcnn_r18-fpn_8xb2_voc07.py']

model = dict(backbone=dict(depth=34, init_cfg=dict(checkpoint='torchvision://resnet34')))
