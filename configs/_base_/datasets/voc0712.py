# VOC07+12, the usual larger detection set (not in the paper): 5,011 trainval images of VOC2007 and 11,540 of
# VOC2012 to train on, the 4,952 test images of VOC2007.
_base_ = ['./voc07.py']

dataset = 'voc0712'
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
