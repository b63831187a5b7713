"""Say how far the runs of a transfer work dir are: ``python tools/status.py work_dirs/transfer --watch``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from sd_pretrain.cli import InputError, run_main

_REFRESH_SECONDS = 2.0


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog='tools/status.py', description=__doc__)
    parser.add_argument('work_dir', type=Path, help='of tools/transfer.sh, or one task in it')
    parser.add_argument('--watch', action='store_true', help='go on until nothing runs or waits in a queue')
    args = parser.parse_args(argv)
    from transfer import status

    if not args.work_dir.is_dir():
        raise InputError(f'no work dir {args.work_dir}')

    queue = status.SlurmQueue()

    def found() -> dict[str, list[status.RunStatus]]:
        return {folder.name: status.sweep_status(folder, queue) for folder in status.sweeps(args.work_dir)}

    def shown(runs: dict[str, list[status.RunStatus]]) -> Group:
        return Group(*(status.status_table(title, some) for title, some in runs.items()))

    runs = found()
    if not args.watch:
        Console().print(shown(runs))
        return
    with Live(shown(runs), auto_refresh=False) as live:
        while any(run.will_change for some in runs.values() for run in some):
            time.sleep(_REFRESH_SECONDS)
            runs = found()
            live.update(shown(runs), refresh=True)


if __name__ == '__main__':
    run_main(main)
