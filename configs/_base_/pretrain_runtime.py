custom_imports = dict(
    imports=[
        'sd_pretrain.cifar',
        'sd_pretrain.classifier',
        'sd_pretrain.device_log',
        'sd_pretrain.imagenet',
        'sd_pretrain.metrics',
        'sd_pretrain.optim',
        'sd_pretrain.prefetch',
        'sd_pretrain.snapshot_hook',
    ],
    allow_failed_imports=False,
)
default_scope = 'mmengine'
# As mmengine's RuntimeInfoHook and IterTimerHook, but no iteration waits for the device.
default_hooks = dict(
    runtime_info=dict(type='DeviceLogHook'),
    timer=dict(type='EvaluationTimerHook'),
    prefetch=dict(type='PrefetchHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    train_accuracy=dict(type='TrainAccuracyHook'),
    # Two: the hook deletes before it writes, and with one a run that is killed meanwhile could not go on.
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# Gradients live in the buckets that are reduced, and every iteration uses every parameter.
model_wrapper_cfg = dict(
    type='MMDistributedDataParallel',
    broadcast_buffers=False,
    gradient_as_bucket_view=True,
    static_graph=True,
    bucket_cap_mb=25,
)
# The sampler is built before a resumed seed is restored: without a pinned seed, a resume would shuffle
# differently.
randomness = dict(seed=0)
log_processor = dict(by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
