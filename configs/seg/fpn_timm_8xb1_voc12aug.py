_base_ = [
    '../_base_/models/fpn_timm.py',
    '../_base_/datasets/voc12aug_crop512.py',
    '../_base_/schedules/seg_50e_adamw.py',
    '../_base_/seg_runtime.py',
]
