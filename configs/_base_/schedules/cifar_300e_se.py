# SE: four mini-generations of 75 epochs, no teacher (Section 4.1.1).
_base_ = './cifar_300e_bl.py'
ends = [75, 150, 225, 300]
param_scheduler = [dict(_base_.param_scheduler[0], periods=[75, 75, 75, 75], restart_weights=[1, 1, 1, 1])]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=ends, distill=False)]
