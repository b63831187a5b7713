# SD: the learning rate of SE, and each mini-generation teaches the next with T = 3 (Section 4.1.1);
# lambda_S = 1 + 1/T and lambda_T = 1 are the defaults.
_base_ = './cifar_164e_se.py'
custom_hooks = [dict(type='SnapshotDistillationHook', ends=_base_.ends, distill=True, temperature=3.0)]
