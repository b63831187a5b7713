# Label refinery: the last generation labels the crops.
_base_ = ['./bl_resnet20.py', '../_base_/methods/refinery.py']
patriarch = 'bl_resnet20.py'
teacher = dict(checkpoint='work_dirs/bl_resnet20/snapshot_1.pth')
custom_hooks = [dict(_base_.method, ends=_base_.ends, teacher=teacher)]
