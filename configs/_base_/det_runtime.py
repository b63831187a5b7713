_base_ = ['./transfer_runtime.py']

default_scope = 'mmdet'
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
# Targets, proposals and RoIs of a batch at once (transfer/det_batched.py): the same up to rounding.
batched_heads = False
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
