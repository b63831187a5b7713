"""Check intervals and verdicts on simulated runs: ``python tools/calibrate.py [--runs 3 5 10]``."""

from __future__ import annotations

import argparse

from sd_pretrain.cli import InputError, run_main
from transfer.calibration import BACKBONE, RUN, simulate


def main(argv: list[str] | None = None) -> None:
    """Print how often a difference is found that is not there or is, and how often intervals hold it."""
    parser = argparse.ArgumentParser(description='How often the verdicts on simulated runs are right.')
    parser.add_argument('--runs', type=int, nargs='+', default=[3, 5, 10], help='of each backbone')
    parser.add_argument(
        '--true', type=float, nargs='+', default=[0.0, 1.0, 1.5], help='true differences in points'
    )
    parser.add_argument('--trials', type=int, default=1000, help='simulated comparisons of each case')
    parser.add_argument('--images', type=int, default=300, help='test images')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    if min(args.runs) < 2 or args.trials < 1 or args.images < 2:
        raise InputError('--runs and --images must be at least 2, --trials at least 1')
    print(
        f'{args.trials} comparisons each; a run scatters by {100 * RUN:.1f} points, backbones differ by '
        f'{100 * BACKBONE:.0f} points from image to image, {args.images} test images'
    )
    print(f'{"runs":>5} {"true":>6}   {"called different":>22}   {"due":>6}   {"95% interval holds it":>22}')
    for true in args.true:
        for runs in args.runs:
            one = simulate(runs, true / 100, trials=args.trials, images=args.images, seed=args.seed)
            cells = [f'{rate:.1%} ± {one.error(rate):.1%}' for rate in (one.found, one.covered)]
            print(
                f'{runs:>5} {true:>+6.1f}   {cells[0]:>22}   {one.expected:>6.1%}   {cells[1]:>22}',
                flush=True,
            )


if __name__ == '__main__':
    run_main(main)
