# Networks of Section 4.1 (sd_pretrain/networks.py). Leaves set `network`.
model = dict(type='TimmClassifier', network='cifar_resnet20', num_classes=100)
