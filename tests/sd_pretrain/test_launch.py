import os

import pytest

from sd_pretrain.launch import cpu_share


@pytest.mark.parametrize(
    'environment, expected',
    [
        ({}, 4),  # this test's own 16 CPUs, 4 processes, no GPU
        ({'SLURM_CPUS_PER_TASK': '6'}, 6),  # srun: one process a task
        ({'SLURM_CPUS_PER_TASK': '16', 'LOCAL_WORLD_SIZE': '8'}, 2),  # torchrun within one task
    ],
)
def test_cpus_of_one_process(monkeypatch, environment, expected):
    for name in ('SLURM_CPUS_PER_TASK', 'LOCAL_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    assert cpu_share(4) == expected
