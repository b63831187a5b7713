# Knowledge distillation from another architecture.
_base_ = ['./bl_resnet56.py', '../_base_/methods/kd.py']
patriarch = 'bl_resnet110.py'
teacher = dict(checkpoint='work_dirs/bl_resnet110/snapshot_1.pth', network='cifar_resnet110')
custom_hooks = [dict(_base_.method, ends=_base_.ends, teacher=teacher)]
