# Networks of Section 4.1 (sd_pretrain/networks.py). Leaves set `network`. On a GPU their steps are as long as
# the launching of their operations takes, one by one: recorded, they are launched in one.
model = dict(
    type='TimmClassifier', network='cifar_resnet20', num_classes=100, channels_last=True, cuda_graph=True
)
