"""Say whether this environment can run the project, line by line: OK, or what to do.

    python tools/doctor.py

Exit code 0 if it can, 1 if something that is needed is missing or broken.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pins

SETUP = 'run `bash tools/setup.sh`'
SHOWN = (
    'torch',
    'torchvision',
    'timm',
    'numpy',
    'onedl-mmengine',
    'onedl-mmcv',
    'onedl-mmdetection',
    'onedl-mmsegmentation',
)
DEMO_GB, LEAST_GB = 5, 1


class Finding(NamedTuple):
    """One line of the report; ``advice`` is there unless ``state`` is OK."""

    state: str  # 'OK', 'note' or 'FAIL'
    what: str
    found: str
    advice: str = ''


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """The interpreter's version."""
    found = '.'.join(map(str, version))
    if pins.PYTHONS[0] <= version[:2] < pins.PYTHONS[1]:
        return Finding('OK', 'Python', f'{found} ({sys.prefix})')
    advice = 'use 3.10, 3.11 or 3.12: PYTHON=/path/to/python3.11 bash tools/setup.sh'
    return Finding('FAIL', 'Python', found, advice)


def check_packages(version_of: pins.Installed = pins.installed) -> list[Finding]:
    """Versions of everything ``pyproject.toml`` asks for; the less interesting ones share a line."""
    findings, others = [], 0
    for wanted in pins.requirements():
        version = version_of(wanted.name)
        if not pins.suits(wanted, version):
            advice = f'needs {wanted}; {SETUP}'
            findings.append(Finding('FAIL', wanted.name, version or 'not installed', advice))
        elif wanted.name in SHOWN:
            findings.append(Finding('OK', wanted.name, version))
        else:
            others += 1
    findings.append(Finding('OK', 'other packages', f'{others} as required'))
    for theirs in pins.conflicts(version_of):
        advice = (
            'shares its folder with the onedl package; use another environment, or uninstall both and set up'
        )
        findings.append(Finding('FAIL', theirs.split()[0], theirs.split()[1], advice))
    return findings


def check_import(module: str, advice: str) -> Finding:
    """Whether a module imports, which versions alone do not tell."""
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever it is, the user is to read it
        return Finding('FAIL', f'import {module}', f'{type(error).__name__}: {error}', advice)
    return Finding('OK', f'import {module}', 'works')


def check_cuda() -> Finding:
    """CUDA devices that torch can use; none is fine for the demo."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Finding('OK', 'CUDA', f'{torch.version.cuda}, {len(names)} x {names[0]}')
    if shutil.which('nvidia-smi') and subprocess.run(['nvidia-smi'], capture_output=True).returncode == 0:
        advice = (
            f'torch {torch.__version__} cannot use the GPU; install a torch built for its driver into the '
            'environment and set up again, which keeps it'
        )
        return Finding('note', 'CUDA', 'not usable', advice)
    return Finding('OK', 'CUDA', 'no GPU here: the demo runs on the CPU, full size needs GPUs')


def check_ops() -> Finding:
    """Whose mmcv ops are in use, and whether they compute."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        from transfer import mmcv_ops

        provider = mmcv_ops.install()
    broken = [str(w.message) for w in caught if 'do not load' in str(w.message)]
    import torch
    from mmcv import ops

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5]])
    kept = ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5)[1].tolist()
    if kept != [1]:
        return Finding(
            'FAIL', 'mmcv ops', provider, f'nms keeps {kept} instead of [1]; reinstall mmcv: {SETUP}'
        )
    if broken:
        return Finding(
            'note', 'mmcv ops', provider, f'{broken[0]}; build mmcv again for this torch to use it'
        )
    return Finding('OK', 'mmcv ops', provider)


def check_disk(free_bytes: int | None = None) -> Finding:
    """Free space where the outputs go."""
    free = (shutil.disk_usage(pins.ROOT).free if free_bytes is None else free_bytes) / 1e9
    found = f'{free:.0f} GB free'
    advice = f'the demo wants {DEMO_GB} GB, a full-size pretraining with its snapshots 50 GB beside the data'
    if free < LEAST_GB:
        return Finding('FAIL', 'disk', found, advice)
    return Finding('note', 'disk', found, advice) if free < DEMO_GB else Finding('OK', 'disk', found)


def _guarded(what: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a broken package may raise anything
        return Finding('FAIL', what, f'{type(error).__name__}: {error}', SETUP)


def examine() -> list[Finding]:
    """All checks in the order in which one needs the other; stops short of imports that cannot work."""
    findings = [check_python(), *check_packages(), check_disk()]
    if any(finding.state == 'FAIL' for finding in findings):
        return findings
    libgl = 'if libGL is missing: pip install --force-reinstall --no-deps opencv-python-headless'
    unfit = 'torch and torchvision do not fit each other or this machine; install a pair from one place'
    findings += [check_import('torch', unfit), check_import('torchvision', unfit), check_import('cv2', libgl)]
    findings.append(check_import('transfer', f'this clone is not installed here; {SETUP}'))
    if any(finding.state == 'FAIL' for finding in findings):
        return findings
    findings.append(_guarded('CUDA', check_cuda))
    findings.append(_guarded('mmcv ops', check_ops))
    findings += [check_import(module, SETUP) for module in ('mmdet', 'mmseg')]
    return findings


def report(findings: list[Finding]) -> int:
    """Print the findings, one a line, and return the exit code."""
    width = max(len(finding.what) for finding in findings)
    for state, what, found, advice in findings:
        print(f'{state:4}  {what:{width}}  {found}{" -> " + advice if advice else ""}')
    failed = sum(finding.state == 'FAIL' for finding in findings)
    print(f'{failed} of {len(findings)} checks failed' if failed else 'All is well.')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(report(examine()))
