# PASCAL VOC2007 (Sec. 4.3): 5,011 trainval images to train on, 4,952 test images.
# Short side 600, long side at most 1000.
task = 'det'
dataset = 'voc07'
dataset_type = 'VOCDataset'
data_root = 'data/VOCdevkit/VOC2007'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),
    # After Resize: predictions come back in the original size, and so must the boxes they are compared with.
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root=''),
        # mmdet's own VOC base ignores boxes under 32 pixels (bbox_min_size): the paper's lineage does not.
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Main/test.txt',
        data_prefix=dict(sub_data_root=''),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# The two differ by 2 points and more, so both are logged. `mAP` is unrounded, `AP50` is not.
val_evaluator = [
    dict(type='VOCMetric', metric='mAP', eval_mode='11points', prefix='11point'),
    dict(type='VOCMetric', metric='mAP', eval_mode='area', prefix='area'),
]
test_evaluator = val_evaluator
