_base_ = ['./faster-rcnn_r50-fpn_8xb2_voc0712.py']

model = dict(
    backbone=dict(depth=152, init_cfg=dict(checkpoint='torchvision://resnet152')),
)
