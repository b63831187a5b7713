"""Is the VOC data there, whole, and fit to be trained on? Asked before the first GPU hour is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from sd_pretrain.cli import InputError
from transfer.voc import BORDER, CLASSES, read_annotation, read_list

# Section 4.3 of the paper; 10,582 training images of VOC2012 are 1,464 + 9,118.
FULL_VOC07 = {'trainval': 5011, 'test': 4952}
FULL_VOC12 = {'train': 1464, 'aug': 9118, 'val': 1449}
FULL_VOC12_DETECTION = {'trainval': 11540}
GET_VOC07 = (
    'get VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from the PASCAL VOC2007 page '
    '(host.robots.ox.ac.uk/pascal/VOC/voc2007) and unpack both into the data root'
)
GET_VOC12 = (
    'get VOCtrainval_11-May-2012.tar from the PASCAL VOC2012 page (host.robots.ox.ac.uk/pascal/VOC/voc2012) '
    'and unpack it into the data root'
)
GET_AUG = (
    'get the SBD masks (benchmark.tgz of "Semantic Contours from Inverse Detectors", Berkeley) and convert '
    "them with mmseg's tools/dataset_converters/voc_aug.py, which writes SegmentationClassAug and aug.txt"
)
# Where the masks of a list are that are not in SegmentationClass.
MASK_FOLDERS = {'aug': 'SegmentationClassAug'}
_SHOWN = 3
_THREADS = 8


@dataclass
class Findings:
    """What was found in one data set: images in each list, and everything that is wrong, in sentences."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def raise_if_any(self) -> dict[str, int]:
        """Return the counts, or raise a :class:`DataError`."""
        if self.problems:
            raise DataError(self)
        return self.counts


class DataError(InputError):
    """Something is wrong with a data set: the first problems, and how many more there are."""

    def __init__(self, found: Findings):
        super().__init__('; '.join(shorten(found.problems)))
        self.found = found


def shorten(problems: Sequence[str], shown: int = _SHOWN) -> list[str]:
    """The first ``shown`` problems, and a line that counts the rest."""
    rest = len(problems) - shown
    return [*problems[:shown], f'and {rest} more like these'] if rest > 0 else list(problems)


def check_detection(root: str | Path, full_size: bool = False, lists: Sequence[str] = ()) -> dict[str, int]:
    """Check a VOC folder for detection: lists, images, XML, boxes.

    Args:
        root: the folder ``VOC2007`` or ``VOC2012`` with ``JPEGImages``, ``Annotations`` and
            ``ImageSets/Main``.
        full_size: require the official numbers of images: 5,011 and 4,952, or 11,540.
        lists: names of the list files in use; default: those of the year.

    Returns:
        The number of images in each list.

    Raises:
        DataError: something is missing or wrong; names the file, what was found and what to do.
    """
    root = Path(root)
    full, where = (FULL_VOC12_DETECTION, GET_VOC12) if root.name == 'VOC2012' else (FULL_VOC07, GET_VOC07)
    folders = ('JPEGImages', 'Annotations', 'ImageSets/Main')
    found, names = _read_lists(root, 'ImageSets/Main', folders, lists or tuple(full), lambda _: where)
    if full_size:
        found.problems += _count_problems(root, found.counts, full, lambda _: where)
    found.problems += _missing_files(root, 'JPEGImages', '.jpg', names, where)
    found.problems += _missing_files(root, 'Annotations', '.xml', names, where)
    found.problems += _each(partial(_annotation_problems, root), names)
    return found.raise_if_any()


def check_segmentation(
    root: str | Path,
    full_size: bool = False,
    lists: Sequence[str] = tuple(FULL_VOC12),
    masks: Mapping[str, str] = MASK_FOLDERS,
) -> dict[str, int]:
    """Check a VOC2012 folder for segmentation: lists, images, masks; see :func:`check_detection`.

    Args:
        root: the folder ``VOC2012`` with ``JPEGImages``, the mask folders and ``ImageSets/Segmentation``.
        full_size: require the official 1,464, 9,118 (SBD) and 1,449 images.
        lists: names of the list files in use.
        masks: for each list the folder of its masks, where that is not ``SegmentationClass``.
    """
    root = Path(root)
    mask_folders = {one: masks.get(one, 'SegmentationClass') for one in lists}
    folders = ('JPEGImages', *dict.fromkeys(mask_folders.values()), 'ImageSets/Segmentation')
    by_list: dict[str, list[str]] = {}
    found, names = _read_lists(root, 'ImageSets/Segmentation', folders, lists, _where_voc12, by_list)
    if full_size:
        found.problems += _count_problems(root, found.counts, FULL_VOC12, _where_voc12)
    found.problems += _missing_files(root, 'JPEGImages', '.jpg', names, GET_VOC12)
    for one, members in by_list.items():
        folder = mask_folders[one]
        found.problems += _missing_files(root, folder, '.png', members, _where_voc12(folder))
        found.problems += _each(partial(_mask_problems, root, folder), members)
    return found.raise_if_any()


def _where_voc12(name: str) -> str:
    """Where to get a list, or a folder of masks."""
    return GET_AUG if name in (*MASK_FOLDERS, *MASK_FOLDERS.values()) else GET_VOC12


def _read_lists(
    root: Path,
    list_folder: str,
    folders: Sequence[str],
    lists: Sequence[str],
    where: Callable[[str], str],
    by_list: dict[str, list[str]] | None = None,
) -> tuple[Findings, list[str]]:
    """Read the list files; returns what is wrong with them, and the names of all images in them."""
    found = Findings()
    if not root.is_dir() or not any(root.iterdir()):
        state = 'is empty' if root.is_dir() else 'does not exist'
        found.problems.append(f'{root} {state}; {where(lists[0])}, or name another place with --data-root')
        return found, []
    found.problems += [
        f'{root} has no folder {folder}; {where(Path(folder).name)}'
        for folder in folders
        if not (root / folder).is_dir()
    ]
    owner: dict[str, str] = {}
    for one in lists:
        path = root / list_folder / f'{one}.txt'
        if not path.parent.is_dir():
            continue
        if not path.is_file():
            there = ', '.join(sorted(p.name for p in path.parent.glob('*.txt'))) or 'no list file'
            found.problems.append(f'{path} does not exist (the folder holds {there}); {where(one)}')
            continue
        names = read_list(path)
        found.counts[one] = len(names)
        if not names:
            found.problems.append(f'{path} is empty where one image name a line is expected; {where(one)}')
        unique = dict.fromkeys(names)
        if len(unique) < len(names):
            found.problems.append(
                f'{path} names {len(names) - len(unique)} images more than once; remove the copies'
            )
        shared = [name for name in unique if name in owner]
        if shared:
            found.problems.append(
                f'{path} shares {len(shared)} images with {owner[shared[0]]}.txt ({", ".join(shared[:3])}); '
                'the lists must not overlap, remove them from one of the two'
            )
        owner.update(dict.fromkeys(unique, one))
        if by_list is not None:
            by_list[one] = list(unique)
    return found, list(owner)


def _count_problems(
    root: Path, counts: dict[str, int], full: dict[str, int], where: Callable[[str], str]
) -> list[str]:
    return [
        f'{root}: {one}.txt names {counts[one]:,} images where the full set has {full[one]:,}; {where(one)}'
        for one in full
        if one in counts and counts[one] != full[one]
    ]


def _missing_files(root: Path, folder: str, suffix: str, names: Iterable[str], where: str) -> list[str]:
    """One problem for all files that ``folder`` lacks; one listing of it instead of a look at each file."""
    directory = root / folder
    if not directory.is_dir():
        return []
    there = {path.name for path in directory.iterdir()}
    missing = [name + suffix for name in names if name + suffix not in there]
    if not missing:
        return []
    some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
    return [f'{directory} lacks {len(missing):,} files that the lists name ({some}); {where}']


def _each(problems_of: Callable[[str], list[str]], names: Sequence[str]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return [problem for some in pool.map(problems_of, names) for problem in some]


def _image_size(path: Path) -> tuple[int, int] | str:
    """Width and height out of the header, or the sentence that says why not."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        kind = 'is empty' if path.stat().st_size == 0 else 'is not a readable image'
        return f'{path} {kind}; unpack it again from its archive'


def _annotation_problems(root: Path, name: str) -> list[str]:
    image_path, path = root / 'JPEGImages' / f'{name}.jpg', root / 'Annotations' / f'{name}.xml'
    if not image_path.is_file() or not path.is_file():
        return []  # told once for all missing files
    size = _image_size(image_path)
    problems = [size] if isinstance(size, str) else []
    try:
        annotation = read_annotation(path)
    except (ValueError, OSError) as error:
        return [*problems, f'{path} {error}; unpack it again from its archive']
    if isinstance(size, str):
        return problems
    if annotation.size is not None and annotation.size != size:
        problems.append(
            f'{path} says {_by(annotation.size)} pixels and its image has {_by(size)}; '
            'they do not belong together, unpack both again'
        )
    for index, box in enumerate(annotation.boxes, 1):
        if box.name not in CLASSES:
            problems.append(
                f'{path}: object {index} is of class {box.name!r}, which is none of the 20 of VOC; rename it'
            )
        # Pixels count from 1 in VOC; 0 occurs in the wild and does no harm.
        if not (0 <= box.xmin <= box.xmax <= size[0] and 0 <= box.ymin <= box.ymax <= size[1]):
            edges = ', '.join(f'{edge:g}' for edge in (box.xmin, box.ymin, box.xmax, box.ymax))
            problems.append(
                f'{path}: box {index} ({edges}: xmin, ymin, xmax, ymax) does not fit its image of '
                f'{_by(size)} pixels; correct it'
            )
    return problems


def _mask_problems(root: Path, folder: str, name: str) -> list[str]:
    image_path, path = root / 'JPEGImages' / f'{name}.jpg', root / folder / f'{name}.png'
    if not image_path.is_file() or not path.is_file():
        return []
    size = _image_size(image_path)
    problems = [size] if isinstance(size, str) else []
    try:
        with Image.open(path) as mask:
            mask_size, mode = mask.size, mask.mode
            values = [value for value, count in enumerate(mask.histogram()) if count]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        kind = 'is empty' if path.stat().st_size == 0 else 'is not a readable image'
        return [*problems, f'{path} {kind}; unpack it again from its archive']
    if not isinstance(size, str) and mask_size != size:
        problems.append(f'{path} has {_by(mask_size)} pixels and its image {_by(size)}; unpack both again')
    if mode not in ('P', 'L'):
        problems.append(
            f'{path} is of mode {mode} where one class index a pixel (palette or grey PNG) is expected; '
            'convert colours back to indices'
        )
        return problems
    odd = [value for value in values if len(CLASSES) < value < BORDER]
    if odd:
        some = ', '.join(map(str, odd[:5])) + (', ...' if len(odd) > 5 else '')
        problems.append(
            f'{path} holds the values {some}; only 0 to {len(CLASSES)} and {BORDER} have a meaning; remap it'
        )
    return problems


def _by(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'
