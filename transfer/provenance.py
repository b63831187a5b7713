"""What was run, where and with which versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    *('torch', 'torchvision', 'timm', 'numpy', 'pillow'),
    *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'),
)


def collect_provenance(commands: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, machine, git commit and command lines, as a JSON-able dictionary.

    Args:
        commands: the command lines of the stages, in order; default: the one of this process.
    """
    versions = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = 'not installed'
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        'commands': list(commands) or [' '.join(sys.orig_argv)],
        'git': git_commit(Path(__file__).resolve().parents[1]),
        'versions': versions,
        'machine': {
            'system': f'{platform.system()} {platform.machine()}',
            'CPU cores': os.cpu_count(),
            'GPUs': ', '.join(gpus) or 'none',
            'CUDA of torch': torch.version.cuda or 'none',
        },
    }


def git_commit(folder: Path) -> str:
    """The commit checked out in ``folder``, ``(changed)`` if files differ from it, or ``'unknown'``."""
    try:
        commit = _git(folder, 'rev-parse', 'HEAD').strip()
        return f'{commit} (changed)' if _git(folder, 'status', '--porcelain').strip() else commit
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def _git(folder: Path, *args: str) -> str:
    return subprocess.run(['git', '-C', folder, *args], check=True, capture_output=True, text=True).stdout
