# Knowledge distillation: another architecture teaches; both logits divided by T, the divergence times T^2.
# T and the weights of the two terms are our choice: Hinton et al. give none for CIFAR-100.
_base_ = './bl_resnet20.py'
patriarch = 'bl_resnet110.py'
custom_hooks = [
    dict(
        type='SnapshotDistillationHook',
        ends=_base_.ends,
        teacher=dict(checkpoint='work_dirs/bl_resnet110/snapshot_1.pth', network='cifar_resnet110'),
        temperature=4.0,
        symmetric=True,
        lambda_s=0.1,
        lambda_t=0.9,
    )
]
