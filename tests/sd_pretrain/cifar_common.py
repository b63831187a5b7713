"""A tiny CIFAR-100 for tests, and tiny trainings on it."""

import pickle
from pathlib import Path

import numpy as np
import torch

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'cifar100'
EPOCHS = 3
SHORT = [
    'model.num_classes=4',
    'total_batch_size=8',
    f'custom_hooks.0.ends=[{EPOCHS}]',
    f'train_cfg.max_epochs={EPOCHS}',
    f'param_scheduler.0.periods=[{EPOCHS}]',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.max_keep_ckpts=-1',
]


def write_cifar(root, counts=(20, 8), classes=4):
    """Random images in the official layout, as Python 3 writes it in protocol 2."""
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, count in zip(('train', 'test'), counts, strict=True):
        rows = {
            'data': random.integers(0, 256, (count, 3072), dtype=np.uint8),
            'fine_labels': [index % classes for index in range(count)],
            'filenames': [f'{index}.png'.encode() for index in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(rows, protocol=2))
    (folder / 'meta').write_bytes(pickle.dumps({'fine_label_names': list('abcd')[:classes]}, protocol=2))
    return folder


def tiny_training(run_tool, cifar):
    """``train(work_dir, *options, config=..., resume=...)`` gives the exit code of tools/train.py."""

    def run(work_dir, *options, config='bl_resnet20.py', resume=None):
        places = ['--work-dir', work_dir, '--data-root', cifar.parent]
        places += ['--resume', resume] if resume else []
        return run_tool('train.py', CONFIGS / config, *places, '--cfg-options', *SHORT, *options)

    return run


def checkpoint(work_dir, epoch):
    return torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=False)


def same_weights(one, other):
    return all(torch.equal(value, other['state_dict'][key]) for key, value in one['state_dict'].items())
