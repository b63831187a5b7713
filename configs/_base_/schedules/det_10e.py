# Sec. 4.3: 10 epochs, 16 images in total, lr 0.01, divided by 10 after epoch 8. No warm-up.
total_batch_size = 16
# Fused: one pass over each weight instead of one for each term; the same up to rounding.
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=10, milestones=[8], gamma=0.1)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
