# Born-again network: the same network again, taught by the last generation at T = 1 beside the labels;
# that both terms count alike is our choice.
_base_ = './bl_resnet20.py'
patriarch = 'bl_resnet20.py'
custom_hooks = [
    dict(
        type='SnapshotDistillationHook',
        ends=_base_.ends,
        teacher=dict(checkpoint='work_dirs/bl_resnet20/snapshot_1.pth'),
        temperature=1.0,
        lambda_s=1.0,
    )
]
