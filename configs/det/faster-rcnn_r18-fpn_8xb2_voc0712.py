_base_ = ['./faster-rcnn_r50-fpn_8xb2_voc0712.py']

model = dict(
    backbone=dict(depth=18, init_cfg=dict(checkpoint='torchvision://resnet18')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
