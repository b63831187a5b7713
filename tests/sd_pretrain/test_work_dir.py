"""Work dirs: their latest checkpoint, and what they are claimed for."""

import pytest

from sd_pretrain.cli import InputError
from sd_pretrain.experiments import epochs_done
from sd_pretrain.work_dir import claim, latest_checkpoint


@pytest.mark.parametrize('there', ['here', 'elsewhere', 'nowhere'])
def test_the_latest_checkpoint_is_looked_for_where_the_work_dir_is_now(tmp_path, there):
    work_dir, before = tmp_path / 'moved', tmp_path / 'before'
    work_dir.mkdir()
    before.mkdir()
    assert latest_checkpoint(work_dir) is None and epochs_done(work_dir) == 0
    (work_dir / 'last_checkpoint').write_text(f'{before}/epoch_12.pth\n')
    for folder in {'here': (work_dir, before), 'elsewhere': (before,), 'nowhere': ()}[there]:
        (folder / 'epoch_12.pth').touch()
    assert latest_checkpoint(work_dir) == (work_dir if there == 'here' else before) / 'epoch_12.pth'
    assert epochs_done(work_dir) == 12


def test_an_empty_pointer_says_what_to_do(tmp_path):
    (tmp_path / 'last_checkpoint').touch()
    with pytest.raises(InputError, match='last_checkpoint is empty .* name of its newest whole epoch_N.pth'):
        latest_checkpoint(tmp_path)


def test_the_order_of_options_says_nothing_unless_a_key_is_repeated(tmp_path):
    claim(tmp_path, {'options': ['a.b=1', 'c=2', 'a.b=3']})
    claim(tmp_path, {'options': ['c=2', 'a.b=1', 'a.b=3']})
    with pytest.raises(InputError, match='options was a.b=1, a.b=3, c=2, is now a.b=3, a.b=1, c=2;'):
        claim(tmp_path, {'options': ['a.b=3', 'a.b=1', 'c=2']})
    with pytest.raises(InputError, match='options was a.b=1, is now d=4;'):
        claim(tmp_path, {'options': ['c=2', 'a.b=3', 'd=4']})
