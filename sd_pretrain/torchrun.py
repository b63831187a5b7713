"""torchrun that ends as its processes do: ``python -m sd_pretrain.torchrun [OPTIONS] SCRIPT ...``.

A mistake in the user's input, which one process has said in one line before it exited with 2, makes the whole
run exit with 2; torchrun itself would print a traceback of its own and exit with 1. So it would on SIGTERM
and Ctrl-C, which end it here as they end any other process.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main() -> None:
    """Run torchrun on the command line."""
    # It reports every process that it stops, after the process itself has said why.
    logging.disable(logging.ERROR)
    try:
        torchrun()
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if 2 not in codes:
            ended = [f'process {rank} with code {one.exitcode}' for rank, one in error.failures.items()]
            print(f'error: a distributed run ended: {", ".join(ended)}; see above', file=sys.stderr)
        sys.exit(2 if 2 in codes else 1)


if __name__ == '__main__':
    main()
