_base_ = [
    '../_base_/models/faster-rcnn_timm-fpn.py',
    '../_base_/datasets/voc0712.py',
    '../_base_/schedules/det_10e_adamw.py',
    '../_base_/det_runtime.py',
]
