"""Check the data before a run: what is there, what is missing or damaged, and where to get it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sd_pretrain.cifar_files import check_cifar100
from sd_pretrain.cli import InputError, run_main
from sd_pretrain.imagenet import check_imagenet
from transfer.check_data import DataError, Findings, check_detection, check_segmentation, shorten

CHECKS: dict[str, tuple[str, Callable[..., dict[str, int]]]] = {
    'imagenet': ('ILSVRC2012', check_imagenet),
    'voc07': ('VOCdevkit/VOC2007', check_detection),
    'voc12': ('VOCdevkit/VOC2012', check_segmentation),
    'voc12det': ('VOCdevkit/VOC2012', check_detection),
    'cifar100': ('cifar-100-python', check_cifar100),
}
TABLE5 = ('imagenet', 'voc07', 'voc12')


def main(argv: list[str] | None = None) -> int:
    """Print one line for each data set, and what is wrong; returns 2 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'datasets',
        nargs='*',
        metavar='DATASET',
        help=f'of {", ".join(CHECKS)}; default: the first three, which Table 5 needs',
    )
    parser.add_argument('--data-root', type=Path, default=Path('data'), help='default: data')
    parser.add_argument('--full-size', action='store_true', help='require the complete official sets')
    args = parser.parse_args(argv)
    unknown = [name for name in args.datasets if name not in CHECKS]
    if unknown:
        raise InputError(f'unknown data set {unknown[0]!r}; there are {", ".join(CHECKS)}')
    wrong = 0
    for name in args.datasets or TABLE5:
        folder, check = CHECKS[name]
        found = _look(check, args.data_root / folder, args.full_size)
        counts = ', '.join(f'{key} {count:,}' for key, count in found.counts.items())
        state = f'{len(found.problems)} wrong' if found.problems else 'OK'
        print(f'{name:<9} {state:<9} {args.data_root / folder}  {counts}'.rstrip())
        for problem in shorten(found.problems, 5):
            print(f'    - {problem}')
        wrong += bool(found.problems)
    if wrong:
        raise InputError(
            f'{wrong} of {len(args.datasets or TABLE5)} data sets cannot be used as they are (see above)'
        )
    return 0


def _look(check: Callable[..., dict[str, int]], root: Path, full_size: bool) -> Findings:
    try:
        return Findings(check(root, full_size=full_size))
    except DataError as error:
        return error.found
    except InputError as error:
        return Findings(problems=[str(error)])


if __name__ == '__main__':
    run_main(main)
