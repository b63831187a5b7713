# SE: two mini-generations of 45 epochs, no teacher (Section 4.2.1).
_base_ = './imagenet_90e_bl.py'
ends = [45, 90]
param_scheduler = [
    dict(
        type='CosineRestartLR',
        periods=[45, 45],
        restart_weights=[1, 1],
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=ends, distill=False)]
