# What detection and segmentation share; scope and visualizer are in {det,seg}_runtime.py.
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Two: the hook deletes before it writes, and with one a run that is killed meanwhile could not go on.
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
env_cfg = dict(
    # Detection's images have different sizes: cuDNN would search anew for most of them.
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# Fine-tuning keeps decoded images, the runs of a sweep on a machine together in up to a quarter of the free
# memory; mmdet and mmseg do not know this.
cache_images = True
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
# Without a pinned seed the sampler is built before a resume restores it, and the order of the images changes.
randomness = dict(seed=0)
