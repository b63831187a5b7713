# Sec. 4.3: 50 epochs, 8 images in total, "poly" 0.9 from 0.007.
# Per iteration, one rate for backbone and head.
total_batch_size = 8
# Fused: one pass over each weight instead of one for each term; the same up to rounding.
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.007, momentum=0.9, weight_decay=1e-4, fused=True)
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=True, begin=0, end=50, convert_to_iter_based=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
