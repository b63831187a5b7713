# Knowledge distillation: another architecture teaches; both logits divided by T, the divergence times T^2.
# T and the weights of the two terms are our choice: Hinton et al. give none for CIFAR-100.
_base_ = './bl_densenet100.py'
patriarch = 'bl_densenet190.py'
custom_hooks = [
    dict(
        type='SnapshotDistillationHook',
        ends=_base_.ends,
        teacher=dict(checkpoint='work_dirs/bl_densenet190/snapshot_1.pth', network='cifar_densenet190'),
        temperature=4.0,
        symmetric=True,
        lambda_s=0.1,
        lambda_t=0.9,
    )
]
