"""Starting one process of a distributed run, with GPUs (nccl) or without (gloo)."""

from __future__ import annotations

import os
import subprocess

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import nn

from sd_pretrain.cli import InputError

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
# How many runs share this machine, for each of them to know.
SIDE_BY_SIDE = 'SD_RUNS_SIDE_BY_SIDE'
# Where each launcher says (rank, world size, local rank).
_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def world_size(launcher: str) -> int:
    """Number of processes of this run, as the launcher's environment says.

    Raises:
        InputError: the process was not started by that launcher.
    """
    if launcher == 'none':
        return 1
    missing = [name for name in _VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise InputError(
            f'--launcher {launcher}: {", ".join(missing)} not set; start this through tools/dist_train.sh, '
            'tools/slurm_train.sh or mpirun, or leave --launcher out'
        )
    return int(os.environ[_VARIABLES[launcher][1]])


def is_main_process(launcher: str) -> bool:
    """Whether this is the process that prints and writes; known before any process group exists."""
    return launcher == 'none' or os.environ.get(_VARIABLES[launcher][0]) == '0'


def cpus() -> int:
    """CPUs that this process, and what it starts, may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def cpu_share(processes: int) -> int:
    """Number of CPUs that each of ``processes`` may use on this machine, at least 1."""
    # Under torchrun in a Slurm job all processes of a machine share one task.
    if 'SLURM_CPUS_PER_TASK' in os.environ and 'LOCAL_WORLD_SIZE' not in os.environ:
        return int(os.environ['SLURM_CPUS_PER_TASK'])
    local = int(os.environ.get('LOCAL_WORLD_SIZE', min(processes, torch.cuda.device_count() or processes)))
    return max(1, cpus() // local)


def runs_side_by_side(gpus: int, on_a_gpu: int = 1) -> int:
    """How many runs a tool starts at a time where the user does not say.

    Args:
        gpus: processes of one run.
        on_a_gpu: the number of one-GPU runs where there are GPUs; small networks gain from sharing one.
    """
    if torch.cuda.is_available():
        return on_a_gpu if gpus == 1 else 1
    return min(2, cpu_share(max(gpus, 1)))


def check_gpus(gpus: int, parallel: int = 1, share: bool = False) -> None:
    """Check that this machine has the GPUs for ``parallel`` runs of ``gpus`` processes.

    One without any GPU runs the processes of a run on its cores, and any number of runs side by side.

    Args:
        gpus: processes of one run.
        parallel: runs side by side.
        share: runs of one process may share a GPU.

    Raises:
        InputError: it has fewer.
    """
    # All cores of the machine: processes pinned to fewer are slow, not wrong.
    found, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if gpus < 1 or parallel < 1:
        raise InputError(f'at least 1 GPU and 1 run at a time, found {gpus} and {parallel}')
    if share and gpus == 1:
        parallel = 1
    if found and gpus * parallel > found:
        runs, way = '', 'ask for fewer'
        if parallel > 1:
            runs = f' by {parallel} runs of {gpus} side by side'
            way = 'ask for fewer, or run fewer side by side (--parallel)'
        raise InputError(f'{gpus * parallel} GPUs asked for{runs}, this machine has {found}; {way}')
    if not found and gpus > cores:
        raise InputError(
            f'{gpus} GPUs asked for, this machine has none; on its {cores} cores ask for at most {cores}'
        )


def places(parallel: int, gpus: int) -> list[dict[str, str]]:
    """For each of ``parallel`` runs at a time on this machine, its environment: GPUs, share of the cores.

    The GPUs are dealt out in turn, so that more runs of one GPU than there are GPUs share them. The share of
    the cores is left out where the user has set ``OMP_NUM_THREADS``.

    Args:
        parallel: runs at a time.
        gpus: processes of one run.
    """
    shared = {}
    if 'OMP_NUM_THREADS' not in os.environ:
        shared['OMP_NUM_THREADS'] = str(max(1, cpus() // (parallel * gpus)))
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    ids = visible.split(',') if visible else [str(index) for index in range(torch.cuda.device_count())]
    if not torch.cuda.device_count():
        return [shared] * parallel
    given = [[ids[(place * gpus + k) % len(ids)] for k in range(gpus)] for place in range(parallel)]
    return [shared | {'CUDA_VISIBLE_DEVICES': ','.join(own)} for own in given]


def init_distributed(launcher: str, cfg: Config) -> None:
    """Join the process group on a machine without GPU; with one, mmengine does it when the runner is built.

    mmengine always selects a CUDA device and hands DDP a device id; both fail on a CPU. A group that exists
    already is left alone by its runner.

    Args:
        launcher: how this process was started.
        cfg: the config; DDP's arguments for CPU processes are set in place.
    """
    if launcher == 'none':
        return
    for target, source in zip(_VARIABLES['pytorch'], _VARIABLES[launcher], strict=True):
        os.environ[target] = os.environ[source]
    if torch.cuda.is_available():
        return
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']],
            capture_output=True,
            text=True,
            check=True,
        )
        os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', '29500')
    torch.distributed.init_process_group('gloo')
    wrapper = dict(
        cfg.get('model_wrapper_cfg') or {'type': 'MMDistributedDataParallel', 'broadcast_buffers': False}
    )
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of DDP."""
    return model.module if is_model_wrapper(model) else model


def leave_distributed() -> None:
    """Leave the process group, if there is one, when every process is ready to."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Whoever leaves first closes its connections, perhaps on somebody who still reads from them.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
