_base_ = ['./transfer_runtime.py']

default_scope = 'mmdet'
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
# Targets, proposals and RoIs of a batch at once, not image by image (transfer/det_batched.py): the same up to
# rounding, and on a GPU the larger part of what makes detection fast.
batched_heads = True
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
