# ResNets of Section 4.2 (timm's have torchvision's layout). Leaves set `network`.
model = dict(
    type='TimmClassifier',
    network='resnet18',
    num_classes=1000,
    network_args=dict(zero_init_last=False),
    channels_last=True,
)
