"""Where weights come from: a file, a pretraining work dir, or a name that torchvision or timm can fetch."""

from __future__ import annotations

import difflib
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from sd_pretrain.cli import InputError
from sd_pretrain.work_dir import LAST, latest_checkpoint
from transfer.architecture import ARCHS

FETCHED = ('torchvision:', 'timm:')
_TIMEOUT = 10  # seconds without an answer from a server


class Source(NamedTuple):
    """Where weights are.

    Args:
        path: the file.
        label: for ``meta``, short and without this machine's paths.
        notes: for the user.
        network: which of timm's networks they are of, if ``src`` said it, with its tag.
    """

    path: Path
    label: str
    notes: list[str]
    network: str = ''

    @property
    def again(self) -> str:
        """What finds them from anywhere on this machine."""
        if self.label.startswith(FETCHED):
            return self.label
        whole = str(self.path.resolve())
        return f'{self.network}@{whole}' if self.network else whole


def resolve(src: str | Path) -> Source:
    """Find the checkpoint file that ``src`` means, fetching it if it is a library's name.

    Args:
        src: A file; a pretraining work dir (its highest ``snapshot_k.pth``, else what ``last_checkpoint``
            names); ``NETWORK@FILE``, a file that does not say which of timm's networks it is of, such as
            ``vit_base_patch16_224.mae@mae.pth``; ``torchvision:resnet152[.IMAGENET1K_V1]``;
            ``timm:resnet152[.a1_in1k]``, as any network of timm's.

    Raises:
        InputError: nothing there, an unknown name (with near matches), or no network.
    """
    library, colon, name = str(src).partition(':')
    if colon and f'{library}:' in FETCHED and not Path(src).exists():
        fetch = _torchvision if library == 'torchvision' else _timm
        file, full_name = fetch(name)
        return Source(file, f'{library}:{full_name}', [], full_name if library == 'timm' else '')
    if re.match(r'(https?|s3|hf):', str(src)):
        raise InputError(
            f'{src}: addresses are not fetched; download the file, or give torchvision:NAME or timm:NAME'
        )
    path, network = Path(src), ''
    said, at, file = str(src).partition('@')
    if at and not path.exists() and '/' not in said:
        known_network(said)
        path, network = Path(file), said
    notes = []
    if path.is_dir():
        if not (path / 'result.json').exists():
            notes.append(f'{path} has no result.json: its pretraining has not ended')
        path = _last_checkpoint(path)
    elif not path.exists():
        hint = f'; did you mean torchvision:{src} or timm:{src}?' if str(src).split('.')[0] in ARCHS else ''
        raise InputError(f'checkpoint {path} does not exist{hint}')
    return Source(path, f'{path.resolve().parent.name}/{path.name}', notes, network)


def known_network(name: str) -> Any:
    """What timm knows of the pretraining of a network, ``name`` with or without a tag, or ``None``.

    Raises:
        InputError: timm has none of that name or tag; says which are near.
    """
    import timm

    plain, _, tag = name.partition('.')
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), n=4, cutoff=0.4)
        raise InputError(f'timm has no network {plain!r}{"; near: " if near else ""}{", ".join(near)}')
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [one.partition('.')[2] for one in timm.list_pretrained(f'{plain}.*')]
        raise InputError(f'timm has no {plain} with tag {tag!r}; there are {", ".join(tags)}') from None


def _last_checkpoint(folder: Path) -> Path:
    snapshots = {
        int(number[1]): path
        for path in folder.glob('snapshot_*.pth')
        if (number := re.fullmatch(r'snapshot_(\d+)\.pth', path.name))
    }
    if snapshots:
        return snapshots[max(snapshots)]
    path = latest_checkpoint(folder)
    if path is None:
        raise InputError(
            f'{folder} has neither snapshot_*.pth nor last_checkpoint: pretrain first, or give a file'
        )
    if not path.is_file():
        raise InputError(f'{folder / LAST} names {path}, which does not exist')
    return path


def _unknown(library: str, name: str, known: list[str], what: str = '') -> InputError:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known[:4]
    return InputError(f'{library} has no weights {name!r}{what}; near: {", ".join(near)}')


def _torchvision(name: str) -> tuple[Path, str]:
    import torch
    from torchvision.models import get_model_weights

    weights = {f'{arch}.{entry.name}': entry for arch in ARCHS for entry in get_model_weights(arch)}
    if name in ARCHS:
        name = f'{name}.{get_model_weights(name).DEFAULT.name}'
    if name not in weights:
        raise _unknown('torchvision', name, list(weights), ' of a plain ResNet')
    url = weights[name].url
    file = Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[1]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT)
        try:
            torch.hub.download_url_to_file(url, str(file), re.search(r'-([0-9a-f]{8,})\.', file.name)[1])
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
            raise _unreachable(f'torchvision:{name}', url, error) from None
        finally:
            socket.setdefaulttimeout(before)
    return file, name


def _timm(name: str) -> tuple[Path, str]:
    import timm

    known = [one for one in timm.list_pretrained() if timm.get_pretrained_cfg(one).hf_hub_id]
    if '.' not in name and timm.is_model_pretrained(name):
        name = f'{name}.{timm.get_pretrained_cfg(name).tag}'
    if name not in known:
        raise _unknown('timm', name, known)
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    repo = timm.get_pretrained_cfg(name).hf_hub_id
    cached = try_to_load_from_cache(repo, 'model.safetensors')
    if isinstance(cached, str):
        return Path(cached), name
    try:
        # The hub's client retries for half a minute before it says that there is no network; ask once first.
        with urllib.request.urlopen(
            urllib.request.Request(constants.ENDPOINT, method='HEAD'), timeout=_TIMEOUT
        ):
            pass
    except urllib.error.HTTPError:
        pass  # an answer, if an unfriendly one: there is a network
    except OSError as error:
        raise _unreachable(f'timm:{name}', constants.ENDPOINT, error) from None
    try:
        return Path(hf_hub_download(repo, 'model.safetensors', etag_timeout=_TIMEOUT)), name
    except Exception as error:  # the client's errors have no common base
        raise _unreachable(f'timm:{name}', constants.ENDPOINT, error) from None


def _unreachable(name: str, url: str, error: Exception) -> InputError:
    reason = str(getattr(error, 'reason', error)).splitlines()[0]
    return InputError(
        f'{name} could not be fetched from {url} ({reason}): '
        'fetch it where there is a network, and bring the cache of that machine (TORCH_HOME, HF_HOME)'
    )
