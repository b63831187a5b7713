"""Snapshot Distillation pretraining (Yang et al., CVPR 2019) as mmengine components."""
