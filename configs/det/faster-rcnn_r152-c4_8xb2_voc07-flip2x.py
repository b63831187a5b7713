_base_ = [
    '../_base_/models/faster-rcnn_r50-c4.py',
    '../_base_/datasets/voc07_flip2x.py',
    '../_base_/schedules/det_10e.py',
    '../_base_/det_runtime.py',
]

pretrained = dict(checkpoint='torchvision://resnet152')
model = dict(
    backbone=dict(depth=152, init_cfg=pretrained),
    roi_head=dict(shared_head=dict(depth=152, init_cfg=pretrained)),
)
