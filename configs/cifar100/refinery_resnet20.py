# Label refinery: the last generation's scores on the very crop are the only labels (T = 1, no hard label).
_base_ = './bl_resnet20.py'
patriarch = 'bl_resnet20.py'
custom_hooks = [
    dict(
        type='SnapshotDistillationHook',
        ends=_base_.ends,
        teacher=dict(checkpoint='work_dirs/bl_resnet20/snapshot_1.pth'),
        temperature=1.0,
        lambda_s=0.0,
    )
]
