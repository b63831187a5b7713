"""A small ILSVRC2012 in each of its layouts, for the tests of how it is read."""

import io

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from scipy.io import savemat

from sd_pretrain.ilsvrc_layouts import DEVKIT

ILSVRC_IDS = {'n00000000': 3, 'n00000001': 1, 'n00000002': 4, 'n00000003': 2}
SYNSETS = [*((number, wnid, 0) for wnid, number in ILSVRC_IDS.items()), (5, 'n00000009', 4)]
# The classes of the validation images 1 to 8.
VAL = [3, 0, 1, 1, 0, 2, 3, 2]


def encoded(image, kind='JPEG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(seed, size=(46, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


TRAIN_FILES = {
    f'n{label:08d}_{number}.JPEG': (label, encoded(picture(100 * label + number)))
    for label in range(4)
    for number in (2, 10, 31)
}
VAL_FILES = {
    f'ILSVRC2012_val_{number:08d}.JPEG': (label, encoded(picture(1000 + number)))
    for number, label in enumerate(VAL, 1)
}
FILES = {'train': TRAIN_FILES, 'val': VAL_FILES}


def write_folders(root, split):
    for name, (label, content) in FILES[split].items():
        path = root / split / f'n{label:08d}' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_flat_val(root):
    (root / 'val').mkdir(parents=True)
    for name, (_, content) in VAL_FILES.items():
        (root / 'val' / name).write_bytes(content)


def write_devkit(folder, synsets=SYNSETS):
    """The kit's two files, in the structure of the official ones."""
    kind = [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O'), ('gloss', 'O'), ('num_children', 'O')]
    rows = [(number, wnid, 'a thing', 'what it is', children) for number, wnid, children in synsets]
    data = folder / DEVKIT / 'data'
    data.mkdir(parents=True)
    savemat(data / 'meta.mat', {'synsets': np.array(rows, dtype=kind)[:, None]})
    truth = ''.join(f'{ILSVRC_IDS[f"n{label:08d}"]}\n' for label in VAL)
    (data / 'ILSVRC2012_validation_ground_truth.txt').write_text(truth)


def write_parquet(folder, split, shards=2, group=3, with_path=True):
    """Shards as Hugging Face writes them: rows in any order, file names with the wnid appended."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (label, content) in FILES[split].items():
        path = name.replace('.JPEG', f'_n{label:08d}.JPEG')
        rows.append({'image': {'bytes': content} | ({'path': path} if with_path else {}), 'label': label})
    rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    stem = {'train': 'train', 'val': 'validation'}[split]
    for shard in range(shards):
        table = pyarrow.Table.from_pylist(rows[shard::shards])
        path = folder / f'{stem}-{shard:05d}-of-{shards:05d}.parquet'
        pyarrow.parquet.write_table(table, path, row_group_size=group)


def make(root, layout):
    if layout == 'folders':
        write_folders(root, 'train')
        write_folders(root, 'val')
    elif layout == 'flat val':
        write_folders(root, 'train')
        write_flat_val(root)
        write_devkit(root)
    elif layout == 'parquet':
        for split in FILES:
            write_parquet(root / 'data', split)
    return root
