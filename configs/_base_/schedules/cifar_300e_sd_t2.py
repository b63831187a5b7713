# SD: the learning rate of SE, and each mini-generation teaches the next with T = 2 (Section 4.1.1);
# lambda_S = 1 + 1/T and lambda_T = 1 are the defaults.
_base_ = './cifar_300e_se.py'
custom_hooks = [dict(type='SnapshotDistillationHook', ends=_base_.ends, distill=True, temperature=2.0)]
