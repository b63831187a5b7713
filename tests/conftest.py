"""For all tests: who sees a GPU; real data where there is some, a tiny VOC tree, one thread for torch."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
REAL_SETS = ('voc2007', 'voc2012', 'ilsvrc')
# fmt: off
CLASS_NAMES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
    'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)
# fmt: on

# Most tests are about a CPU, many to the bit: they find none of the machine's GPUs, nor do the processes that
# they start. Those marked so need one, and run by themselves: ``pytest -m cuda``.
_NEEDS_GPU = 'cuda'


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs before any test is imported, and torch with it."""
    config.addinivalue_line('markers', f'{_NEEDS_GPU}: needs a CUDA GPU; only "-m {_NEEDS_GPU}" shows it one')
    if config.option.markexpr != _NEEDS_GPU:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where none is found."""
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason=f'needs a CUDA GPU and "pytest -m {_NEEDS_GPU}"')
        for item in items:
            if item.get_closest_marker(_NEEDS_GPU):
                item.add_marker(skip)


@pytest.fixture(scope='session', autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and sums then come in another order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root with ``ILSVRC2012``, ``VOCdevkit/VOC2007`` and ``VOCdevkit/VOC2012``: real photos, few.

    Unpacked by ``unpack.py`` of the folder that ``SD_REAL_DATA`` names.
    The tree is shared by all tests: read it, and copy what is to be changed.
    """
    source = Path(os.environ.get('SD_REAL_DATA', '.')).resolve()
    if not (source / 'unpack.py').is_file():
        pytest.skip(f'real data: no {source / "unpack.py"}; SD_REAL_DATA names its folder')
    root = tmp_path_factory.mktemp('real_data')
    subprocess.run([sys.executable, source / 'unpack.py', root, *REAL_SETS], check=True, capture_output=True)
    return root


@pytest.fixture(scope='session')
def run_tool() -> Callable[..., int]:
    """``run_tool(name, *arguments)`` runs ``tools/<name>`` in this process and returns its exit code."""
    return _run_tool


def _run_tool(name: str, *arguments: object) -> int:
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer

    # mmengine names its global instances by config and second: without this, a second run within the same
    # second would write into the first one's logs.
    for shared in (MMLogger, MessageHub, Visualizer, DefaultScope):
        shared._instance_dict.clear()
    old = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(REPO / 'tools' / name), run_name='__main__')
    except SystemExit as exit:
        return exit.code
    finally:
        sys.argv = old
    return 0


@pytest.fixture(scope='session')
def write_tiny_voc() -> Callable[..., Path]:
    """The function :func:`_write_tiny_voc`, for fixtures that want a tree of their own size or scope."""
    return _write_tiny_voc


@pytest.fixture
def tiny_voc(tmp_path: Path) -> Path:
    """Fresh data root with ``VOCdevkit/{VOC2007,VOC2012}`` of 4 + 2 images each; the test may change it."""
    return _write_tiny_voc(tmp_path / 'data')


def _write_tiny_voc(root: Path, train: int = 4, test: int = 2, size: tuple[int, int] = (64, 48)) -> Path:
    """Write ``train`` + ``test`` images to each of ``root/VOCdevkit/{VOC2007,VOC2012}``; returns ``root``.

    Each image (``size`` is width, height) shows two filled rectangles, one class each, with VOC2007's XML and
    VOC2012's palette masks (border 255). Of VOC2012's training images the second half is in ``aug`` alone.
    """
    voc07, voc12 = (root / 'VOCdevkit' / name for name in ('VOC2007', 'VOC2012'))
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (voc07 / folder).mkdir(parents=True)
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'):
        (voc12 / folder).mkdir(parents=True)
    names = [f'{index:06d}' for index in range(1, train + test + 1)]
    real_train = (train + 1) // 2
    for index, name in enumerate(names):
        image, mask, objects = _scene(index, size)
        for voc in (voc07, voc12):
            image.save(voc / 'JPEGImages' / f'{name}.jpg', quality=90)
        (voc07 / 'Annotations' / f'{name}.xml').write_text(_annotation(name, size, objects))
        if not real_train <= index < train:
            mask.save(voc12 / 'SegmentationClass' / f'{name}.png')
        if index < train:
            mask.save(voc12 / 'SegmentationClassAug' / f'{name}.png')
    lists = {
        voc07 / 'ImageSets' / 'Main': {'trainval': names[:train], 'test': names[train:]},
        voc12 / 'ImageSets' / 'Segmentation': {
            'train': names[:real_train],
            'aug': names[real_train:train],
            'val': names[train:],
        },
    }
    for folder, files in lists.items():
        for stem, members in files.items():
            (folder / f'{stem}.txt').write_text(''.join(f'{name}\n' for name in members))
    return root


def _scene(index: int, size: tuple[int, int]) -> tuple[Image.Image, Image.Image, list]:
    """A picture, its mask and its ``(class, (left, top, right, bottom))``, right and bottom exclusive."""
    width, height = size
    rng = np.random.default_rng(index)
    pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), np.uint8)
    objects = []
    for half in range(2):
        label = (2 * index + half) % 20
        left = half * width // 2 + int(rng.integers(1, width // 8))
        top = int(rng.integers(1, height // 4))
        right, bottom = left + width // 4, top + height // 2
        pixels[top:bottom, left:right] = (40 + 10 * label, 250 - 10 * label, 60 if label % 2 else 200)
        labels[top - 1 : bottom + 1, left - 1 : right + 1] = 255
        labels[top:bottom, left:right] = label + 1
        objects.append((CLASS_NAMES[label], (left, top, right, bottom)))
    mask = Image.frombytes('P', size, labels.tobytes())
    mask.putpalette([value for colour in range(256) for value in (colour, 255 - colour, 128)])
    return Image.fromarray(pixels), mask, objects


def _annotation(name: str, size: tuple[int, int], objects: list) -> str:
    boxes = ''.join(
        f'<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>'
        f'<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>\n'
        for label, (left, top, right, bottom) in objects
    )
    return (
        f'<annotation><folder>VOC2007</folder><filename>{name}.jpg</filename><size><width>{size[0]}</width>'
        f'<height>{size[1]}</height><depth>3</depth></size>\n{boxes}</annotation>\n'
    )
