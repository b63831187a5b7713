_base_ = ['./svm-knn_r50-frozen_voc07.py']

model = dict(backbone=dict(depth=34))
