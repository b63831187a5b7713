# Detection in the emoji world on the images of both years, about as many iterations as with VOC2007's alone.
_base_ = ['./faster-rcnn_timm-fpn_demo-voc07.py']

dataset = 'voc0712'
epochs, step = 2, 1
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type='VOCDataset',
                data_root=f'data/VOCdevkit/VOC{year}',
                ann_file='ImageSets/Main/trainval.txt',
                data_prefix=dict(sub_data_root=''),
                filter_cfg=dict(filter_empty_gt=True, min_size=32),
                pipeline=_base_.train_pipeline,
            )
            for year in (2007, 2012)
        ],
    )
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=epochs, milestones=[step], gamma=0.1),
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
