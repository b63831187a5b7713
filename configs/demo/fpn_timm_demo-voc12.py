# Segmentation in the emoji world on any network of timm's, small enough for two CPU cores.
_base_ = ['../seg/fpn_timm_8xb1_voc12aug.py']

epochs = 5
total_batch_size = 4
lr = 5e-4
crop_size = (96, 128)  # height, width
scale, ratio_range = (128, 128), (0.95, 1.25)  # scenes of 128x102, larger than the crop
fpn_channels, head_channels = 96, 128  # with 64 the head learns nothing in so few iterations

model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=(128, 128))),
    neck=dict(out_channels=fpn_channels),
    decode_head=dict(in_channels=[fpn_channels] * 4, channels=head_channels),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=ratio_range, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    # After Resize: predictions come back in the original size, where the masks are.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        datasets=[dict(part, pipeline=train_pipeline) for part in _base_.train_dataloader.dataset.datasets]
    ),
)
val_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(
        type='PolyLR', power=0.9, eta_min=0.0, by_epoch=True, begin=0, end=epochs, convert_to_iter_based=True
    )
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(logger=dict(interval=5))
