# VOC2012 with crops whose sides are multiples of 32, for feature pyramids.
_base_ = ['./voc12aug.py']

crop_size = (512, 512)
train_pipeline = [
    dict(step, crop_size=crop_size) if step['type'] == 'RandomCrop' else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(
    dataset=dict(
        datasets=[dict(part, pipeline=train_pipeline) for part in _base_.train_dataloader.dataset.datasets]
    )
)
