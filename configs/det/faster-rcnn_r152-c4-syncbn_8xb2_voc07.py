# Another BN regime: statistics and affine parameters of layer2-layer4 are trained, synchronised over GPUs.
_base_ = ['./faster-rcnn_r152-c4_8xb2_voc07.py']

norm = dict(norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=False)
model = dict(backbone=norm, roi_head=dict(shared_head=norm))
