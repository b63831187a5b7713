_base_ = [
    '../_base_/models/faster-rcnn_r50-fpn.py',
    '../_base_/datasets/voc0712.py',
    '../_base_/schedules/det_10e.py',
    '../_base_/det_runtime.py',
]
