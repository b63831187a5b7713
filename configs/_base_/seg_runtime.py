_base_ = ['./transfer_runtime.py']

default_scope = 'mmseg'
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
# Images have different sizes and the test is on whole images: cuDNN would search anew for most of them.
env_cfg = dict(cudnn_benchmark=False)
