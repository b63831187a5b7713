# Any network of timm's that is no plain ResNet: the checkpoint says which.
_base_ = ['./svm-knn_r50-frozen_voc07.py']

model = dict(backbone=dict(_delete_=True, type='timm'))
