# Label refinery: the last generation labels the crops.
_base_ = ['./bl_densenet100.py', '../_base_/methods/refinery.py']
patriarch = 'bl_densenet100.py'
teacher = dict(checkpoint='work_dirs/bl_densenet100/snapshot_1.pth')
custom_hooks = [dict(_base_.method, ends=_base_.ends, teacher=teacher)]
