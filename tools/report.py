"""Write the report of a transfer work dir again: ``python tools/report.py work_dirs/transfer``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import run_main


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog='tools/report.py', description=__doc__)
    parser.add_argument('work_dir', type=Path, help='of tools/transfer.sh')
    parser.add_argument('--baseline', help='default: as in the report that is there')
    args = parser.parse_args(argv)
    from transfer import table
    from transfer.results import collect
    from transfer.transfer_report import note_transfer, report_transfer

    results = collect(args.work_dir, first=[args.baseline] if args.baseline else [])
    table.rows(results, args.baseline)  # refuses one that is not there
    report_transfer(args.work_dir, results, note_transfer(args.work_dir, results, []))
    print(args.work_dir / 'report.html')


if __name__ == '__main__':
    run_main(main)
