"""Snapshot Distillation pretraining (Yang et al., CVPR 2019) as mmengine components."""

import os

# While threads of an operation wait for each other they turn round and round, by GNU OpenMP's default for
# milliseconds: with anything else busy on the same cores most of the time goes into that. After fewer turns
# they leave the core to the others. It is read once, when PyTorch is loaded.
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '10000')
