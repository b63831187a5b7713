# Segmentation in the emoji world (scenes of 160x128): the DeepLabv3 recipe, small enough for two CPU cores.
_base_ = ['../seg/deeplabv3_r18-d16-syncbn_8xb1_voc12aug.py']

epochs = 4
total_batch_size = 8
lr = 0.02
crop_size = (129, 129)  # 16 * 8 + 1
scale, ratio_range = (160, 160), (0.75, 1.5)
aspp_channels, aspp_dilations = 64, (1, 2, 4, 6)

model = dict(
    data_preprocessor=dict(size=crop_size, test_cfg=dict(size=(161, 161))),
    decode_head=dict(channels=aspp_channels, dilations=aspp_dilations),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=ratio_range, keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
parts = [('SegmentationClass', 'train'), ('SegmentationClassAug', 'aug')]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        datasets=[
            dict(
                type='PascalVOCDataset',
                data_root='data/VOCdevkit/VOC2012',
                data_prefix=dict(img_path='JPEGImages', seg_map_path=masks),
                ann_file=f'ImageSets/Segmentation/{split}.txt',
                pipeline=train_pipeline,
            )
            for masks, split in parts
        ]
    ),
)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(
        type='PolyLR', power=0.9, eta_min=0.0, by_epoch=True, begin=0, end=epochs, convert_to_iter_based=True
    )
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(logger=dict(interval=5))
