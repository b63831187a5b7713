"""Whole runs through tools/train.py and tools/test.py, on a few tiny images, and checkpoints they refuse."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.runner import ValLoop

from sd_pretrain.curves import read_curves
from sd_pretrain.snapshot_hook import TEACHER_KEY

RESUMABLE = 'epoch_2.pth'


@pytest.fixture(scope='module')
def trained(run_tool, tiny_config, image_folder, tmp_path_factory):
    """Work dir of a finished SD run: two epochs, then one that is taught."""
    work_dir = tmp_path_factory.mktemp('work') / 'sd'
    assert run_tool('train.py', tiny_config, '--work-dir', work_dir, '--data-root', image_folder) == 0
    return work_dir


def scalars(work_dir):
    path = next(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_result(trained, tiny_config):
    result = json.loads((trained / 'result.json').read_text())
    assert result['schema'] == 1
    assert result['config'] == str(tiny_config)
    assert result['checkpoint'] == 'snapshot_2.pth'
    assert result['seconds'] > 0
    last = [row for row in scalars(trained) if 'accuracy/top1' in row][-1]
    assert result['top1'] == last['accuracy/top1'] / 100
    assert result['top5'] == last['accuracy/top5'] / 100 == 1


def test_log_shows_both_terms_from_the_second_mini_generation_on(trained):
    rows = [row for row in scalars(trained) if 'loss' in row]
    assert [('loss_kl' in row) for row in rows] == [False] * 6 + [True] * 3
    assert all('loss_ce' in row for row in rows)
    assert rows[6]['lr'] == rows[0]['lr'] > rows[5]['lr']


def test_checkpoints_are_the_student_and_beside_it_the_teacher(trained):
    epochs = [torch.load(trained / f'epoch_{n}.pth', weights_only=False) for n in (1, 2, 3)]
    snapshot = torch.load(trained / 'snapshot_1.pth', weights_only=True)
    assert TEACHER_KEY not in epochs[0]
    for epoch in epochs[1:]:
        assert epoch['state_dict'].keys() == snapshot['state_dict'].keys()
        for key, value in epoch[TEACHER_KEY]['state_dict'].items():
            assert torch.equal(value, snapshot['state_dict'][f'network.{key}']), key
    assert torch.equal(
        epochs[1]['state_dict']['network.fc.weight'], snapshot['state_dict']['network.fc.weight']
    )
    assert not torch.equal(
        epochs[2]['state_dict']['network.fc.weight'], snapshot['state_dict']['network.fc.weight']
    )
    students = len([key for key in snapshot['state_dict'] if key.endswith(('weight', 'bias'))])
    assert len(epochs[2]['optimizer']['state']) == students


def test_resume_trains_on_with_the_teacher(run_tool, trained, tiny_config, image_folder, tmp_path):
    shutil.copy(trained / RESUMABLE, tmp_path)
    (tmp_path / 'last_checkpoint').write_text('/moved/since/' + RESUMABLE)
    assert (
        run_tool('train.py', tiny_config, '--work-dir', tmp_path, '--data-root', image_folder, '--resume')
        == 0
    )
    rows = [row for row in scalars(tmp_path) if 'loss' in row]
    assert [row['epoch'] for row in rows] == [3, 3, 3]
    assert all('loss_kl' in row for row in rows)
    before, after = (
        torch.load(path, weights_only=False) for path in (trained / RESUMABLE, tmp_path / 'epoch_3.pth')
    )
    assert after[TEACHER_KEY]['iteration'] == before[TEACHER_KEY]['iteration'] == 6
    for key, value in before[TEACHER_KEY]['state_dict'].items():
        assert torch.equal(value, after[TEACHER_KEY]['state_dict'][key]), key
    assert json.loads((tmp_path / 'result.json').read_text())['checkpoint'] == 'snapshot_2.pth'


def test_resume_after_the_last_epoch_still_writes_the_result(
    run_tool, trained, tiny_config, image_folder, tmp_path
):
    for name in ('epoch_3.pth', 'snapshot_2.pth'):
        shutil.copy(trained / name, tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    assert (
        run_tool('train.py', tiny_config, '--work-dir', tmp_path, '--data-root', image_folder, '--resume')
        == 0
    )
    results = [json.loads((path / 'result.json').read_text()) for path in (trained, tmp_path)]
    assert results[0]['top1'] == results[1]['top1']


@pytest.mark.parametrize('options', [[], ['--stop-after', 2]], ids=['to the end', 'stopped'])
def test_an_epoch_whose_validation_was_killed_is_validated_on_resume(
    run_tool, trained, tiny_config, image_folder, tmp_path, monkeypatch, options
):
    arguments = ['train.py', tiny_config, '--work-dir', tmp_path, '--data-root', image_folder]
    validate, calls = ValLoop.run, []

    def killed(loop):
        calls.append(loop)
        if len(calls) == 2:
            raise MemoryError
        return validate(loop)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(ValLoop, 'run', killed)
        run_tool(*arguments)
    assert run_tool(*arguments, '--resume', *options) == 0
    assert run_tool(*arguments, '--resume') == 0
    rows = [
        json.loads(line)
        for path in sorted(tmp_path.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    assert [row['step'] for row in rows if 'accuracy/top1' in row] == [1, 2, 3], 'none of them twice'
    assert read_curves(tmp_path).test_error == read_curves(trained).test_error


def test_a_finished_run_is_left_alone(run_tool, trained, tiny_config, image_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    assert run_tool('train.py', tiny_config, '--work-dir', trained, '--data-root', image_folder) == 0
    assert 'Finished already' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained.iterdir()} == before


def test_compiled_a_run_is_the_same_run(run_tool, trained, tiny_config, image_folder, tmp_path, capsys):
    """A finished one is left alone, a stopped one goes on."""
    places = ['--data-root', image_folder, '--compile', '--work-dir']
    assert run_tool('train.py', tiny_config, *places, trained) == 0
    assert 'Finished already' in capsys.readouterr().out
    resume = ['--resume', trained / RESUMABLE, '--check']
    assert run_tool('train.py', tiny_config, *resume, *places, tmp_path / 'new') == 0


def test_evaluation_gives_the_accuracy_of_the_run(
    run_tool, trained, tiny_config, image_folder, tmp_path, capsys
):
    # The training images are not needed.
    validation = Path('ILSVRC2012') / 'val'
    shutil.copytree(image_folder / validation, tmp_path / validation)
    arguments = [tiny_config, trained / 'snapshot_2.pth', '--work-dir', tmp_path, '--data-root', tmp_path]
    assert run_tool('test.py', *arguments) == 0
    result = json.loads((trained / 'result.json').read_text())
    assert f'top-1 {100 * result["top1"]:.2f}%' in capsys.readouterr().out


def test_amp_and_baseline(run_tool, tiny_config, image_folder, tmp_path):
    """BL is one mini-generation of the same hook; --amp works without a GPU."""
    options = ['custom_hooks.0.ends=[1]', 'custom_hooks.0.distill=False', 'train_cfg.max_epochs=1']
    options += ['param_scheduler.0.periods=[1]', 'param_scheduler.0.restart_weights=[1]']
    places = ['--work-dir', tmp_path, '--data-root', image_folder]
    assert run_tool('train.py', tiny_config, '--amp', *places, '--cfg-options', *options) == 0
    assert json.loads((tmp_path / 'result.json').read_text())['checkpoint'] == 'snapshot_1.pth'
    assert all('loss_kl' not in row for row in scalars(tmp_path))


def test_other_settings_do_not_overwrite_a_finished_run(refused, trained, tiny_config):
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    line = refused(tiny_config, '--cfg-options', 'optim_wrapper.optimizer.lr=0.5', work_dir=trained)
    assert 'finished run of other settings' in line
    assert {path: path.stat().st_mtime_ns for path in trained.iterdir()} == before


class Code:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def bad_checkpoint(kind, trained, tmp_path):
    path = tmp_path / 'bad.pth'
    if kind == 'truncated':
        path.write_bytes((trained / RESUMABLE).read_bytes()[:20000])
    elif kind == 'code':
        torch.save({'state_dict': {}, 'optimizer': Code(tmp_path / 'ran')}, path)
    elif kind == 'text':
        path.write_text('hello')
    elif kind == 'other depth':
        checkpoint = torch.load(trained / RESUMABLE, weights_only=False)
        state = checkpoint['state_dict']
        checkpoint['state_dict'] = {key: value for key, value in state.items() if 'layer4' not in key}
        torch.save(checkpoint, path)
    elif kind == 'list':
        torch.save([1, 2], path)
    return path


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
@pytest.mark.parametrize(
    'kind, message',
    [
        ('missing', 'no checkpoint'),
        ('truncated', 'damaged'),
        ('text', 'is not a checkpoint'),
        ('code', 'refused, nothing of it was executed'),
        ('list', 'holds a list'),
        ('other depth', 'does not fit'),
    ],
)
def test_checkpoints_that_cannot_be_used(refused, trained, tiny_config, tmp_path, tool, kind, message):
    path = bad_checkpoint(kind, trained, tmp_path)
    arguments = [tiny_config, '--resume', path] if tool == 'train.py' else [tiny_config, path]
    assert message in refused(*arguments, tool=tool)
    assert not (tmp_path / 'ran').exists()


def test_resume_that_lacks_its_teacher(refused, trained, tiny_config, tmp_path):
    checkpoint = torch.load(trained / RESUMABLE, weights_only=False)
    del checkpoint[TEACHER_KEY], checkpoint['meta']['run_settings']
    torch.save(checkpoint, tmp_path / 'no_teacher.pth')
    # With this boundary the checkpoint is from within the second mini-generation.
    ends = ['custom_hooks.0.ends=[1,3]', 'param_scheduler.0.periods=[1,2]']
    line = refused(tiny_config, '--resume', tmp_path / 'no_teacher.pth', '--cfg-options', *ends)
    assert 'needs the teacher of iteration 3, but the checkpoint has none' in line


def test_resume_of_the_last_epoch_elsewhere(refused, trained, tiny_config, tmp_path):
    line = refused(tiny_config, '--resume', trained / 'epoch_3.pth', work_dir=tmp_path / 'elsewhere')
    assert 'nothing left to train' in line
    assert 'has no snapshot_2.pth' in line


def test_snapshots_cannot_be_resumed(refused, trained, tiny_config):
    assert 'no optimizer state' in refused(tiny_config, '--resume', trained / 'snapshot_1.pth')


@pytest.mark.parametrize('setting, trained_with', [('lr=0.5', '0.05'), ('weight_decay=0.5', '0.0001')])
def test_resume_with_other_optimizer_settings(refused, trained, tiny_config, setting, trained_with):
    options = ['--cfg-options', f'optim_wrapper.optimizer.{setting}']
    line = refused(tiny_config, '--resume', trained / RESUMABLE, *options)
    assert f'the config has {setting}, ' in line
    assert f'was trained with {trained_with}, which would win' in line
