# Tolerant teacher, the taught generations: born again, from a tolerant first generation.
_base_ = './bl_densenet100.py'
patriarch = 'tolerant_first_densenet100.py'
custom_hooks = [
    dict(
        type='SnapshotDistillationHook',
        ends=_base_.ends,
        teacher=dict(checkpoint='work_dirs/tolerant_first_densenet100/snapshot_1.pth'),
        temperature=1.0,
        lambda_s=1.0,
    )
]
