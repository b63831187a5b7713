# SD: as SE, and the first mini-generation teaches the second.
_base_ = './se_r18_demo.py'
custom_hooks = [dict(type='SnapshotDistillationHook', ends=_base_.ends, distill=True, temperature=2.0)]
