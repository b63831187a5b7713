_base_ = [
    '_base_/models/classifier_resnet.py',
    '_base_/datasets/imagenet.py',
    '_base_/schedules/imagenet_90e_sd.py',
    '_base_/pretrain_runtime.py',
]
model = dict(network='resnet34')
