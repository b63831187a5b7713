"""Check the data before a run: what is there, what is missing or damaged, and where to get it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sd_pretrain.cli import InputError, run_main
from transfer.check_data import Findings, inspect_voc07, inspect_voc12, inspect_voc12_detection, shorten


def _inspect_imagenet(root: Path, full_size: bool) -> Findings:
    from sd_pretrain.imagenet import check_imagenet

    return _first_problem(check_imagenet, root, full_size)


def _inspect_cifar100(root: Path, full_size: bool) -> Findings:
    from sd_pretrain.cifar_files import check_cifar100

    return _first_problem(check_cifar100, root, full_size)


def _first_problem(check: Callable[..., dict[str, int]], root: Path, full_size: bool) -> Findings:
    try:
        return Findings(check(root, full_size=full_size))
    except InputError as error:
        return Findings(problems=[str(error)])


CHECKS: dict[str, tuple[str, Callable[[Path, bool], Findings]]] = {
    'imagenet': ('ILSVRC2012', _inspect_imagenet),
    'voc07': ('VOCdevkit/VOC2007', inspect_voc07),
    'voc12': ('VOCdevkit/VOC2012', inspect_voc12),
    'voc12det': ('VOCdevkit/VOC2012', inspect_voc12_detection),
    'cifar100': ('cifar-100-python', _inspect_cifar100),
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
        folder, inspect = CHECKS[name]
        found = inspect(args.data_root / folder, args.full_size)
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


if __name__ == '__main__':
    run_main(main)
