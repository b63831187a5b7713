# BL: one cosine over 164 epochs of batches of 128, for the ResNets (Section 4.1.1).
total_batch_size = 128
ends = [164]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='FusedSGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
)
param_scheduler = [
    dict(
        type='CosineRestartLR',
        periods=[164],
        restart_weights=[1],
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=ends, distill=False)]
train_cfg = dict(by_epoch=True, max_epochs=164, val_interval=1)
val_cfg = dict()
test_cfg = dict()
