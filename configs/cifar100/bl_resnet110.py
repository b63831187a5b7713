_base_ = [
    '../_base_/models/classifier_cifar.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_164e_bl.py',
    '../_base_/pretrain_runtime.py',
]
model = dict(network='cifar_resnet110')
