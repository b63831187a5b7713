_base_ = [
    '../_base_/models/deeplabv3_r50-d16.py',
    '../_base_/datasets/voc12aug.py',
    '../_base_/schedules/seg_50e_poly.py',
    '../_base_/seg_runtime.py',
]
