# The epochs, batch and decay of det_10e.py with AdamW and a warm-up, as Swin and ConvNeXt were tuned for
# detection: SGD does not train transformers well, and a comparison needs one optimizer for all.
_base_ = ['./det_10e.py']

# Fused: one pass over each weight instead of one for each term; the same up to rounding.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=10, milestones=[8], gamma=0.1),
]
