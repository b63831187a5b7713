# SE: two mini-generations of 45 epochs, no teacher (Section 4.2.1).
_base_ = './imagenet_90e_bl.py'
ends = [45, 90]
param_scheduler = [dict(_base_.param_scheduler[0], periods=[45, 45], restart_weights=[1, 1])]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=ends, distill=False)]
