_base_ = ['./svm-knn_r18-frozen_demo-voc07.py']

model = dict(backbone=dict(_delete_=True, type='timm'))
