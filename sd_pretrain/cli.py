"""What every entry point shares: the error a user can mend, the data root, the total batch size."""

from __future__ import annotations

import argparse
import atexit
import errno
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from mmengine.config import Config, DictAction

# What gloo says when the process at the other end is gone.
_LOST_PEER = re.compile(r'Connection (closed|reset) by peer|Broken pipe|Connection refused')
_PATIENCE_SECONDS = 20.0
# Of a disk: full, over the quota, read-only, not allowed, a file where a folder is wanted or the reverse.
_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
)


class InputError(Exception):
    """A mistake in what the user gave: the message says what, where, and what to do about it."""


class RunFailedError(Exception):
    """A process that was started for the user failed by no mistake of theirs; carries the end of its log."""


class Options(DictAction):
    """``KEY=VALUE ...`` of ``--cfg-options`` as a dict; raises InputError for what is not of that form.

    A path may have spaces, and commas where the value is in quotes.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *args: Any
    ) -> None:
        """Parse the values into ``namespace``."""
        try:
            super().__call__(parser, namespace, values, *args)
        except (ValueError, AssertionError):
            given = ' '.join(values)
            raise InputError(f'--cfg-options {given}: KEY=VALUE is needed, brackets closed') from None

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        """As mmengine does, which takes the spaces out of all values; but for those that are no list."""
        text = val.strip('\'" ')
        quoted = val[:1] in ('"', "'") and val.find(val[0], 1) == len(val) - 1
        if (quoted or ',' not in text) and not text.startswith(('[', '(')):
            return DictAction._parse_int_float_bool(text)
        return DictAction._parse_iterable(val)


def read_config(
    path: str | Path, options: dict[str, Any] | None = None, import_custom_modules: bool = True
) -> Config:
    """Read a config, and let ``--cfg-options`` change it.

    Raises:
        InputError: no such file, it does not parse, or an option that another one decides.
    """
    _import_yapf()
    _format_once()
    if not Path(path).is_file():
        raise InputError(f'no config {path}: see configs/README.md for those there are')
    try:
        cfg = Config.fromfile(path, import_custom_modules=import_custom_modules)
        cfg.merge_from_dict(options or {})
    except Exception as error:  # a config is a program: it can fail in any way
        raise InputError(f'config {path} cannot be read: {type(error).__name__}: {error}') from error
    if 'train_dataloader.batch_size' in (options or {}) and 'total_batch_size' in cfg:
        raise InputError(
            'train_dataloader.batch_size follows from total_batch_size and the number of processes; '
            'set that one: --cfg-options total_batch_size=N'
        )
    return cfg


def _import_yapf() -> None:
    """Import what mmengine prints configs with.

    The first process to do so after an installation fills a cache, and shows it before all of it is written:
    others, started at the same time, fail.

    Raises:
        InputError: the cache stays as if half written.
    """
    for seconds in (0.1, 0.2, 0.5, 1, 2, 4, None):
        try:
            import yapf  # noqa: F401
        except (EOFError, UnpicklingError):
            if seconds is None:
                from platformdirs import user_cache_dir

                cache = user_cache_dir('YAPF', 'Google')
                raise InputError(f'the cache of yapf in {cache} is damaged: delete that folder') from None
            time.sleep(seconds)
        else:
            return


@cache
def _format_once() -> None:
    """Let mmengine have each text formatted once: the log, the copy on disk and every checkpoint ask for it.

    It takes a second or more for a large config.
    """
    from yapf.yapflib import yapf_api

    format_code = yapf_api.FormatCode

    @lru_cache(maxsize=4)
    def formatted(call: str) -> tuple[str, bool]:
        args, options = json.loads(call)
        return format_code(*args, **options)

    yapf_api.FormatCode = lambda *args, **options: formatted(json.dumps([args, options]))


# What ``--compile`` says to a config.
COMPILE = 'model.compile=True'


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """``--gpus``, ``--amp``, ``--compile`` and ``--cfg-options`` of a tool that trains several networks."""
    parser.add_argument('--gpus', type=int, default=1, help='GPUs of one run')
    parser.add_argument('--amp', action='store_true', help='train in bfloat16 mixed precision')
    parser.add_argument('--compile', action='store_true', help='compile network and augmentation')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='settings for all runs'
    )


def training_options(args: argparse.Namespace) -> tuple[str, ...]:
    """What these say to the configs of all runs, as ``KEY=VALUE``.

    Raises:
        InputError: a seed, which would be that of all runs.
    """
    if any(option.startswith('randomness.seed=') for option in args.cfg_options):
        raise InputError(
            '--cfg-options randomness.seed would train every run with the same seed; '
            f'give {"--seeds" if "seeds" in args else "--seed"}'
        )
    return (*([COMPILE] if args.compile else []), *args.cfg_options)


def run_main(main: Callable[[], int | None]) -> None:
    """Run a tool's ``main`` and exit; an :class:`InputError` prints one line and exits with 2, Ctrl-C 130.

    So does a disk that is full or may not be written to. Where nobody reads the output any more (``| head``)
    it ends silently with 141, as other tools do.

    In a distributed run this is said by the process that found the mistake. The others lose their connection
    to it and wait for the launcher to stop them, so that the first to end is the one that knows why.
    """
    try:
        try:
            code = main() or 0
        finally:
            print(end='', flush=True)
        if 'RANK' in os.environ:
            _end_process(code)
        sys.exit(code)
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except RunFailedError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = '' if error.filename is None else f': {error.filename}'
        print(
            f'error: {error.strerror}{where}; mend that and give the same command again (tools/train.py goes '
            'on with --resume)',
            file=sys.stderr,
        )
        sys.exit(2)
    except RuntimeError as error:
        if not _LOST_PEER.search(str(error)):
            raise
        time.sleep(_PATIENCE_SECONDS)
        print('another process of this run has ended; this one stops too', file=sys.stderr, flush=True)
        os._exit(1)  # the process group cannot be left in order any more
    except KeyboardInterrupt:
        if os.environ.get('RANK', '0') == '0':
            print('interrupted', file=sys.stderr)
        sys.exit(130)


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _end_process(code: int) -> None:
    """End a process of a distributed run that has done its work, without taking its native threads down.

    Those of gloo and DDP may still run when the interpreter does that, and then abort the process
    ("terminate called without an active exception"), now and then and on a busy machine.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def named_folder(argument: str) -> tuple[str, str]:
    """Read ``[NAME=]WORK_DIR``: name, empty where there is none, and folder.

    Raises:
        InputError: there is an ``=`` without both, or nothing at all.
    """
    name, equals, folder = argument.partition('=')
    if not equals or Path(argument).is_dir():
        name, equals, folder = '', '', argument
    if not folder or (equals and not name):
        raise InputError(
            f'{argument!r} is not WORK_DIR or NAME=WORK_DIR, such as SD=work_dirs/sd_r152_imagenet'
        )
    return name, folder


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``--seeds``: a number of seeds (``3``: 0, 1, 2), or the seeds (``0,7`` or ``7,``).

    Raises:
        InputError: neither, or the same seed twice.
    """
    parts = [part for part in text.split(',') if part.strip()]
    if not parts or not all(part.strip().isdigit() for part in parts):
        raise InputError(f'--seeds {text}: give how many (3), or which ones (0,1,7)')
    values = tuple(int(part) for part in parts)
    if ',' not in text:
        values = tuple(range(values[0]))
    if not values or len(set(values)) != len(values):
        raise InputError(f'--seeds {text}: at least one seed, and none twice')
    return values


def set_data_root(cfg: Any, root: str | Path) -> None:
    """Point every ``data_root='data/...'`` of a config (nested, changed in place) at ``root/...``."""
    if isinstance(cfg, Config):
        cfg = cfg._cfg_dict
    if isinstance(cfg, dict):
        old = cfg.get('data_root')
        if isinstance(old, str) and (old == 'data' or old.startswith('data/')):
            cfg['data_root'] = str(Path(root) / old[len('data/') :])
        for value in cfg.values():
            set_data_root(value, root)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            set_data_root(value, root)


def split_total_batch(cfg: Any, world_size: int) -> None:
    """Set the batch of one process so that all processes together see ``cfg.total_batch_size`` images.

    Raises:
        InputError: the total cannot be divided by ``world_size``.
    """
    total = cfg.get('total_batch_size')
    if total is None:
        return
    if total % world_size:
        raise InputError(
            f'the total batch of {total} cannot be divided over {world_size} processes; '
            f'choose a divisor of {total}, or --cfg-options total_batch_size=N'
        )
    cfg.train_dataloader.batch_size = total // world_size
