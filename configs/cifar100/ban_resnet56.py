# Born-again network: the same network again, taught by the last generation.
_base_ = ['./bl_resnet56.py', '../_base_/methods/ban.py']
patriarch = 'bl_resnet56.py'
teacher = dict(checkpoint='work_dirs/bl_resnet56/snapshot_1.pth')
custom_hooks = [dict(_base_.method, ends=_base_.ends, teacher=teacher)]
