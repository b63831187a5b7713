_base_ = ['../_base_/models/svm-knn.py', '../_base_/datasets/voc07_probe.py']
