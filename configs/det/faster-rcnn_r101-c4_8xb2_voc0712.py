_base_ = ['./faster-rcnn_r50-c4_8xb2_voc0712.py']

pretrained = dict(checkpoint='torchvision://resnet101')
model = dict(
    backbone=dict(depth=101, init_cfg=pretrained),
    roi_head=dict(shared_head=dict(depth=101, init_cfg=pretrained)),
)
