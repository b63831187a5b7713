"""Where checkpoints come from, and that no bad one gets in or gets to run anything."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from convert_common import FORMATS, ours, random_weights, timm_safetensors, torchvision_file

from sd_pretrain.cli import InputError
from sd_pretrain.safe_load import load_checkpoint
from transfer.checkpoint_io import read_meta
from transfer.convert import convert
from transfer.sources import resolve


@pytest.fixture(scope='module')
def weights():
    return random_weights('resnet18')


@pytest.fixture
def no_network(monkeypatch):
    """Every request is refused at once: nothing listens on the proxy's port."""
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '')
    monkeypatch.setenv('NO_PROXY', '')


class Touch:
    """A pickle that creates a file when it is loaded with Python's own loader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('protocol', [2, 4])
def test_code_in_a_bare_pickle_is_named_and_not_run(protocol, tmp_path):
    mark = tmp_path / 'ran'
    (tmp_path / 'x.pth').write_bytes(pickle.dumps({'state_dict': Touch(mark)}, protocol=protocol))
    with pytest.raises(InputError, match=r'wants posix\.mkdir when loaded; refused'):
        convert(tmp_path / 'x.pth', tmp_path, 'mmdet')
    assert not mark.exists()
    pickle.loads((tmp_path / 'x.pth').read_bytes())  # it would have
    assert mark.exists()


@pytest.mark.parametrize('zipped', [True, False])
def test_code_beside_the_weights_is_named_and_not_run(zipped, weights, tmp_path):
    mark = tmp_path / 'ran'
    torch.save(
        {'state_dict': weights, 'meta': Touch(mark)},
        tmp_path / 'x.pth',
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(InputError, match=r'wants posix\.mkdir when loaded; refused'):
        convert(tmp_path / 'x.pth', tmp_path / 'out/', 'mmdet')
    assert not mark.exists()
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['ours.pth', 'torchvision.pth', 'timm.safetensors'])
@pytest.mark.parametrize('share', [0.0001, 0.5, 0.999])
def test_truncated_files_are_told(name, share, weights, tmp_path):
    FORMATS[name](weights, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f'{name} is truncated'):
        load_checkpoint(tmp_path / name)


def test_a_checkpoint_without_weights_is_told(tmp_path):
    torch.save({'epoch': 1, 'optimizer': {}}, tmp_path / 'rest.pth')
    with pytest.raises(InputError, match='no weights in it; its entries are epoch, optimizer'):
        convert(tmp_path / 'rest.pth', tmp_path, 'mmdet')


def test_meta_of_published_files_only(weights, tmp_path):
    torch.save({'state_dict': weights, 'meta': {'epoch': 1}}, tmp_path / 'x.pth')
    with pytest.raises(InputError, match='is no converted backbone'):
        read_meta(tmp_path / 'x.pth')
    with pytest.raises(InputError, match='does not exist'):
        read_meta(tmp_path / 'y.pth')


def test_an_altered_published_file_is_refused(weights, tmp_path):
    torch.save(weights, tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path, 'torchvision', verify=False)
    content = bytearray(done.path.read_bytes())
    content[len(content) // 2] ^= 1
    done.path.write_bytes(content)
    with pytest.raises(InputError, match=f'its content hash is .*, not {done.sha256[:8]}'):
        convert(done.path, tmp_path / 'out/', 'torchvision')


def test_destination_that_cannot_be_written(weights, tmp_path):
    torch.save(weights, tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'cannot write .*x\.pth/out/.*: Not a directory'):
        convert(tmp_path / 'x.pth', tmp_path / 'x.pth' / 'out' / 'name', 'torchvision', verify=False)


# Work dirs.


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def test_work_dir_gives_its_last_snapshot(tmp_path):
    touch(
        tmp_path, 'snapshot_1.pth', 'snapshot_2.pth', 'snapshot_10.pth', 'snapshot_best.pth', 'epoch_99.pth'
    )
    path, label, notes, _ = resolve(tmp_path)
    assert (path.name, label) == ('snapshot_10.pth', f'{tmp_path.name}/snapshot_10.pth')
    assert 'has not ended' in notes[0]
    touch(tmp_path, 'result.json')
    assert resolve(tmp_path).notes == []


def test_work_dir_without_snapshots_gives_its_last_checkpoint_even_when_moved(tmp_path):
    touch(tmp_path, 'epoch_2.pth', 'epoch_3.pth')
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/before/epoch_3.pth')
    assert resolve(tmp_path).path == tmp_path / 'epoch_3.pth'
    (tmp_path / 'epoch_3.pth').unlink()
    with pytest.raises(
        InputError, match=r'last_checkpoint names /elsewhere/before/epoch_3.pth, which does not exist'
    ):
        resolve(tmp_path)


def test_work_dir_without_checkpoints(tmp_path):
    with pytest.raises(InputError, match=r'neither snapshot_\*.pth nor last_checkpoint'):
        resolve(tmp_path)


# Names that libraries fetch.


def test_torchvision_name_from_its_cache(weights, tmp_path, monkeypatch, no_network):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torchvision_file(weights, cache / 'resnet18-f37072fd.pth')
    done = convert('torchvision:resnet18', tmp_path / 'out/', 'torchvision')
    assert read_meta(done.path)['source'] == 'torchvision:resnet18.IMAGENET1K_V1'
    assert '20 num_batches_tracked that the source lacks set to 0' in done.notes


def test_timm_name_from_its_cache(weights, tmp_path, monkeypatch, no_network):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    repo = tmp_path / 'models--timm--resnet18.a1_in1k'
    (repo / 'snapshots' / 'abc').mkdir(parents=True)
    (repo / 'refs').mkdir()
    (repo / 'refs' / 'main').write_text('abc')
    timm_safetensors(weights, repo / 'snapshots' / 'abc' / 'model.safetensors')
    done = convert('timm:resnet18.a1_in1k', tmp_path / 'out/', 'torchvision')
    assert read_meta(done.path)['source'] == 'timm:resnet18.a1_in1k'


@pytest.mark.parametrize('name', ['torchvision:resnet152.IMAGENET1K_V1', 'timm:resnet152.a1_in1k'])
def test_no_network_is_one_clear_error(name, tmp_path, monkeypatch, no_network):
    from huggingface_hub import constants

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(
        InputError, match=f'{name} could not be fetched from https://.* where there is a network'
    ):
        resolve(name)


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('torchvision:resnet512', 'near: .*resnet152.IMAGENET1K_V'),
        ('torchvision:resnet152.IMAGENET1K_V3', 'near: .*resnet152.IMAGENET1K_V2'),
        ('timm:resnet152.a1_in22k', 'near: .*resnet152.a1_in1k'),
        ('torchvision:resnext50_32x4d', 'of a plain ResNet; near: .*resnet50'),
        ('resnet50', 'did you mean torchvision:resnet50 or timm:resnet50'),
        ('https://example.org/resnet50.pth', 'addresses are not fetched'),
        ('nowhere/x.pth', 'checkpoint nowhere/x.pth does not exist'),
    ],
)
def test_unknown_names_list_near_ones(name, near):
    with pytest.raises(InputError, match=near):
        resolve(name)


def test_tool_ends_with_one_line_and_code_2(run_tool, tmp_path, capsys):
    ours({'conv1.weight': torch.zeros(1)}, tmp_path / 'x.pth')
    (tmp_path / 'x.pth').write_bytes((tmp_path / 'x.pth').read_bytes()[:-100])
    assert run_tool('convert_checkpoint.py', tmp_path / 'x.pth', tmp_path / 'o', '--to', 'timm') == 2
    said = capsys.readouterr()
    assert said.out == ''
    assert said.err.startswith(f'error: {tmp_path / "x.pth"} is truncated')
    assert said.err.count('\n') == 1
