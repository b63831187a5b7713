# SE: four mini-generations of 41 epochs, no teacher (Section 4.1.1).
_base_ = './cifar_164e_bl.py'
ends = [41, 82, 123, 164]
param_scheduler = [dict(_base_.param_scheduler[0], periods=[41, 41, 41, 41], restart_weights=[1, 1, 1, 1])]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=ends, distill=False)]
