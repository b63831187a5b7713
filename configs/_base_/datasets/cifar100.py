# CIFAR-100, resident on the device (Section 4.1.1). The total batch is in the schedule.
data_root = 'data/cifar-100-python'

# Mean and standard deviation of the training images, in grey levels: the paper gives no normalisation.
data_preprocessor = dict(
    type='ImageBatchPreprocessor', mean=(129.30, 124.07, 112.43), std=(68.17, 65.39, 70.42)
)

# "symmetrically-padded with a 4-pixel margin on each of the four sides [...] a subregion with 32x32 pixels is
# randomly cropped and flipped with a probability of 0.5"; no augmentation in testing. An epoch sees every
# image once: the last batch is smaller. num_workers stays 0 and nothing is pinned: the images are on the
# device.
train_dataloader = dict(
    num_workers=0,
    pin_memory=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='CropFlipBatchSampler'),
    collate_fn=dict(type='as_is'),
    dataset=dict(type='Cifar100', data_root=data_root, split='train', padding=4),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    pin_memory=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='as_is'),
    dataset=dict(type='Cifar100', data_root=data_root, split='val'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
