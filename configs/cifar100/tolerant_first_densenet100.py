# Tolerant teacher, first generation: kept from being too sure of the first of five classes. The weight is
# our choice.
_base_ = './bl_densenet100.py'
model = dict(tolerance=dict(weight=0.5))
