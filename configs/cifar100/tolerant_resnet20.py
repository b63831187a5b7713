# Tolerant teacher, the taught generations: born again, from a tolerant first generation.
_base_ = ['./bl_resnet20.py', '../_base_/methods/ban.py']
patriarch = 'tolerant_first_resnet20.py'
teacher = dict(checkpoint='work_dirs/tolerant_first_resnet20/snapshot_1.pth')
custom_hooks = [dict(_base_.method, ends=_base_.ends, teacher=teacher)]
