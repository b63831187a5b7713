# SE: two mini-generations, no teacher.
_base_ = './bl_r18_demo.py'
ends = [_base_.epochs // 2, _base_.epochs]
param_scheduler = [
    dict(_base_.param_scheduler[0], periods=[ends[0], ends[1] - ends[0]], restart_weights=[1, 1])
]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=ends, distill=False)]
