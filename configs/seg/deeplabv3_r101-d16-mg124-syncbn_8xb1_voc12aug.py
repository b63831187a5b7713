_base_ = ['./deeplabv3_r101-d16-syncbn_8xb1_voc12aug.py']

# Multi-grid (1, 2, 4) of reference [4], times the rate 2 of the last stage: mmseg takes the products.
model = dict(backbone=dict(multi_grid=(2, 4, 8)))
