_base_ = ['./deeplabv3_r50-d16-syncbn_8xb1_voc12aug.py']

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    decode_head=dict(in_channels=512),
)
