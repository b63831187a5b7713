# Tolerant teacher, the taught generations: born again, from a tolerant first generation.
_base_ = ['./bl_densenet100.py', '../_base_/methods/ban.py']
patriarch = 'tolerant_first_densenet100.py'
teacher = dict(checkpoint='work_dirs/tolerant_first_densenet100/snapshot_1.pth')
custom_hooks = [dict(_base_.method, ends=_base_.ends, teacher=teacher)]
