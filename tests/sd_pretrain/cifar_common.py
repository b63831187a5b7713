"""A tiny CIFAR-100 for tests."""

import pickle

import numpy as np


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
