_base_ = ['./faster-rcnn_r18-c4_8xb2_voc0712.py']

pretrained = dict(checkpoint='torchvision://resnet34')
model = dict(
    backbone=dict(depth=34, init_cfg=pretrained),
    roi_head=dict(shared_head=dict(depth=34, init_cfg=pretrained)),
)
