# VOC2007 as the lineage of the paper's schedule walks it: an epoch is 10,022 images, mirrored ones included.
_base_ = ['./voc07.py']

load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=(1000, 600), keep_ratio=True)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type='VOCDataset',
                data_root='data/VOCdevkit/VOC2007',
                ann_file='ImageSets/Main/trainval.txt',
                data_prefix=dict(sub_data_root=''),
                filter_cfg=dict(filter_empty_gt=True, min_size=32),
                pipeline=[*load, resize, *flip, dict(type='PackDetInputs')],
            )
            for flip in ([], [dict(type='RandomFlip', prob=1.0)])
        ],
    )
)
