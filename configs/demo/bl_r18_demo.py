# BL on the embedded emoji world. What to tune is here; SE and SD inherit it.
_base_ = [
    '../_base_/models/classifier_resnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_90e_bl.py',
    '../_base_/pretrain_runtime.py',
]
epochs = 6
total_batch_size = 32
lr = 0.05
size = 48
crop_scale = (0.6, 1.0)
rotation = 5
jitter = 0.1
num_classes = 100
default_data_root = 'work_dirs/demo_data'

ends = [epochs]
model = dict(network='resnet18', num_classes=num_classes)
data_preprocessor = dict(rotation=rotation, jitter=jitter)
train_dataloader = dict(num_workers=0, dataset=dict(size=size, scale=crop_scale))
val_dataloader = dict(num_workers=0, dataset=dict(size=size, resize=size * 9 // 8))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [dict(_base_.param_scheduler[0], periods=[epochs], restart_weights=[1])]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=ends, distill=False)]
train_cfg = dict(max_epochs=epochs)
default_hooks = dict(logger=dict(interval=20))
