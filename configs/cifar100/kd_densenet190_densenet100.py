# Knowledge distillation from another architecture.
_base_ = ['./bl_densenet100.py', '../_base_/methods/kd.py']
patriarch = 'bl_densenet190.py'
teacher = dict(checkpoint='work_dirs/bl_densenet190/snapshot_1.pth', network='cifar_densenet190')
custom_hooks = [dict(_base_.method, ends=_base_.ends, teacher=teacher)]
