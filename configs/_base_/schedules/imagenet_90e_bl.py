# BL: one cosine over 90 epochs (Section 4.2.1).
ends = [90]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='FusedSGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
)
param_scheduler = [
    dict(
        type='CosineRestartLR',
        periods=[90],
        restart_weights=[1],
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=ends, distill=False)]
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
val_cfg = dict()
test_cfg = dict()
