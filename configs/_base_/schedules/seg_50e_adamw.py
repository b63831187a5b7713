# The epochs, batch and "poly" decay of seg_50e_poly.py with AdamW, for networks of all kinds.
_base_ = ['./seg_50e_poly.py']

# Fused: one pass over each weight instead of one for each term; the same up to rounding.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05, fused=True))
