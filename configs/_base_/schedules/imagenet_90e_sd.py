# SD: the learning rate of SE, and the first mini-generation teaches the second with T = 2 (Section 4.2.1);
# lambda_S = 1 + 1/T and lambda_T = 1 (Section 4.1.1) are the defaults.
_base_ = './imagenet_90e_se.py'
custom_hooks = [dict(type='SnapshotDistillationHook', ends=_base_.ends, distill=True, temperature=2.0)]
