_base_ = ['./transfer_runtime.py']

default_scope = 'mmseg'
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
# Training crops have one size, and so have the test images as they are padded: cuDNN searches once for each.
env_cfg = dict(cudnn_benchmark=True)
