# ILSVRC2012 folders, 224 px, batch 256 in total (Section 4.2.1).
data_root = 'data/ILSVRC2012'
total_batch_size = 256

# "rescaling and cropping the image, randomly mirroring and rotating (slightly) the image, changing its
# aspect ratio and performing pixel jittering": crop, scale and ratio in the dataset; mirror,
# rotation (degrees) and jitter on the device. The paper gives no amounts; these are ours.
data_preprocessor = dict(type='ImageBatchPreprocessor', mirror=0.5, rotation=10, jitter=0.4)

train_dataloader = dict(
    batch_size=32,
    num_workers=12,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='collate_channels_last'),
    dataset=dict(type='ImageNetFolder', data_root=data_root, split='train', size=224),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='collate_channels_last'),
    dataset=dict(type='ImageNetFolder', data_root=data_root, split='val', size=224, resize=256),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='TopKAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
