"""Checkpoints of any origin: what loads, what is refused, and that nothing in them runs."""

import pickle
import zipfile

import pytest
import torch

from sd_pretrain.checkpoint import read_checkpoint
from sd_pretrain.cli import InputError
from sd_pretrain.safe_load import _Inert, load_checkpoint


def test_the_names_that_logs_need_run_nothing_either(tmp_path):
    """mmengine's own list of safe names lets a checkpoint call the real getattr; ours does not."""

    class Attribute:
        def __reduce__(self):
            return getattr, (torch.Tensor, 'shape')

    torch.save({'state_dict': {}, 'log': Attribute()}, tmp_path / 'x.pth')
    log = load_checkpoint(tmp_path / 'x.pth')['log']
    assert isinstance(log, _Inert)
    assert isinstance(read_checkpoint(tmp_path / 'x.pth')['log'], _Inert)


def test_a_whole_network_is_refused_by_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'x.pth')
    with pytest.raises(
        InputError, match=r"wants torch.nn.modules.linear.Linear .* save the model's state_dict"
    ):
        load_checkpoint(tmp_path / 'x.pth')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', r'is empty \(0 bytes\)'),
        (b'<!DOCTYPE html>\n<html>', r"not a checkpoint: it begins with b'<!DOCTYPE html>'"),
        (b'\xff\xd8\xff\xe0 a photo', 'not a checkpoint'),
        (pickle.dumps([1, 2], protocol=2), 'truncated, damaged or not a checkpoint'),
    ],
)
def test_other_files_are_told(content, message, tmp_path):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / 'x.pth')


def test_other_zips_and_other_contents_are_told(tmp_path):
    with zipfile.ZipFile(tmp_path / 'doc.zip', 'w') as archive:
        archive.writestr('word/document.xml', '<x/>')
    with pytest.raises(InputError, match='zip archive but not a PyTorch checkpoint'):
        load_checkpoint(tmp_path / 'doc.zip')
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / 'script.pt')
    with pytest.raises(InputError, match='TorchScript program'):
        load_checkpoint(tmp_path / 'script.pt')
    torch.save(torch.zeros(3), tmp_path / 'tensor.pth')
    with pytest.raises(InputError, match='holds a Tensor, not a state_dict'):
        load_checkpoint(tmp_path / 'tensor.pth')
