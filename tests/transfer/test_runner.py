"""The runner: which runs there are, which are done, what a user's mistake gets."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18, resnet50

from sd_pretrain.cli import InputError, parse_seeds
from transfer import contenders, runner, start

REPO = Path(__file__).resolve().parents[2]
DET_DEMO = 'configs/demo/faster-rcnn_r18-c4_demo-voc07.py'


def save_network(path, make=resnet18, seed=0):
    torch.manual_seed(seed)
    torch.save(make().state_dict(), path)
    return path


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Two checkpoints as torchvision has them, with classifier."""
    folder = tmp_path_factory.mktemp('checkpoints')
    return {name: save_network(folder / f'{name}.pth', seed=seed) for seed, name in enumerate(('A', 'B'))}


@pytest.fixture(scope='module')
def files(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp('backbones')
    return {name: contenders.backbone_file(name, str(path), folder) for name, path in checkpoints.items()}


def load_tool():
    spec = importlib.util.spec_from_file_location('run_transfer', REPO / 'tools/run_transfer.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def finish(run, identity_of):
    """Write the result.json that the run would."""
    run.work_dir.mkdir(parents=True, exist_ok=True)
    (run.work_dir / 'result.json').write_text(json.dumps(identity_of(run)))


def identity(config, data_root, options=None):
    from sd_pretrain.cli import set_data_root
    from transfer.backbone import read_backbone
    from transfer.run_record import describe, load_config

    def of(run):
        path = run.arguments[run.arguments.index('--backbone') + 1]
        cfg = load_config(config, options)
        set_data_root(cfg, data_root)
        return describe(cfg, read_backbone(path), run.seed)

    return of


def test_names_and_checkpoints():
    assert contenders.named_checkpoints(['B=x=1.pth', 'A=none', 'B=y']) == {
        'B': ['x=1.pth', 'y'],
        'A': ['none'],
    }


def test_without_names_the_papers_two_pretrainings_are_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {'BL': 'work_dirs/bl_r152_imagenet', 'SD': 'work_dirs/sd_r152_imagenet'}
    Path(own['BL']).mkdir(parents=True)
    Path(own['BL'], 'result.json').touch()
    Path(own['SD']).mkdir()  # broken off: snapshot_1.pth is no SD yet
    with pytest.raises(InputError, match='no finished pretraining in work_dirs/sd_r152_imagenet: name'):
        contenders.named_checkpoints([])
    Path(own['SD'], 'result.json').touch()
    assert contenders.named_checkpoints([]) == {name: [folder] for name, folder in own.items()}


def test_names_after_the_options_are_not_swallowed(tmp_path):
    tool = load_tool()
    task = ['det', 'voc07', '--cfg-options', 'train_cfg.max_epochs=1', 'load_from=None']
    assert tool.parse_args(task).cfg_options == ['train_cfg.max_epochs=1', 'load_from=None']
    with pytest.raises(InputError, match='SD=b.pth stands after --cfg-options'):
        tool.parse_args([*task, 'SD=b.pth'])
    with pytest.raises(InputError, match='stands after --cfg-options'):
        tool.parse_args([*task, f'SD={tmp_path}'])


def test_by_default_as_many_runs_at_a_time_as_there_are_gpus_for(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6,7')
    given = []
    monkeypatch.setattr(start, 'run_local', lambda title, runs, folder, places: given.extend(places))
    start.start('det', [], tmp_path, runner.Options(gpus=2))
    start.start('det', [], tmp_path, runner.Options(parallel=3))
    assert [one['CUDA_VISIBLE_DEVICES'] for one in given] == ['4,5', '6,7', '4', '5', '6']


def test_seeds():
    assert parse_seeds('3') == (0, 1, 2)
    assert parse_seeds('0,7') == (0, 7)
    assert parse_seeds('7,') == (7,)
    for wrong in ('0', 'x', '1,1', '-1', ''):
        with pytest.raises(InputError, match='--seeds'):
            parse_seeds(wrong)


def test_a_converted_checkpoint_is_not_converted_again(checkpoints, tmp_path, monkeypatch):
    first = contenders.backbone_file('A', str(checkpoints['A']), tmp_path)
    monkeypatch.setattr(contenders, 'convert', None)
    assert contenders.backbone_file('A', str(checkpoints['A']), tmp_path) == first
    assert contenders.backbone_file('other', first, tmp_path) == first, 'a backbone file is taken as it is'


def test_plan_skips_what_is_finished_and_refuses_another_run(in_repo, files, tiny_voc, tmp_path):
    task = runner.find_task('det', 'voc07')
    options = runner.Options(seeds=(0, 5), demo=True, data_root=str(tiny_voc))
    runs = runner.plan(task, files, tmp_path / 'det', options)
    assert [(run.name, run.seed, run.state) for run in runs] == [
        ('A', 0, 'nothing'), ('A', 5, 'nothing'), ('B', 0, 'nothing'), ('B', 5, 'nothing'),
    ]  # fmt: skip
    assert runs[3].work_dir == tmp_path / 'det' / 'B' / 'seed5'

    finish(runs[1], identity(DET_DEMO, tiny_voc))
    again = runner.plan(task, files, tmp_path / 'det', options)
    assert [run.state for run in again] == ['nothing', 'all', 'nothing', 'nothing']

    swapped = {'A': files['B']}
    with pytest.raises(InputError, match=r'A/seed5 holds another run: backbone was .*is now'):
        runner.plan(task, swapped, tmp_path / 'det', options)
    longer = runner.Options(
        seeds=(5,), demo=True, data_root=str(tiny_voc), cfg_options=['train_cfg.max_epochs=9']
    )
    with pytest.raises(InputError, match=r'A/seed5 holds another run: config was'):
        runner.plan(task, {'A': files['A']}, tmp_path / 'det', longer)

    moved = shutil.copytree(tiny_voc, tmp_path / 'moved')
    there = runner.Options(seeds=(5,), demo=True, data_root=str(moved))
    assert [run.state for run in runner.plan(task, {'A': files['A']}, tmp_path / 'det', there)] == ['all']
    images = moved / 'VOCdevkit/VOC2007/ImageSets/Main/trainval.txt'
    images.write_text(''.join(images.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match=r'A/seed5 holds another run: image lists was'):
        runner.plan(task, {'A': files['A']}, tmp_path / 'det', there)


def test_depth_of_the_checkpoint_picks_the_config(in_repo, tiny_voc, tmp_path):
    converted = contenders.backbone_file(
        'R', str(save_network(tmp_path / 'r50.pth', resnet50)), tmp_path / 'b'
    )
    options = runner.Options(data_root=str(tiny_voc))
    for task, config in (
        (('det', 'voc07'), 'configs/det/faster-rcnn_r50-c4_8xb2_voc07.py'),
        (('seg', 'voc12'), 'configs/seg/deeplabv3_r50-d16-syncbn_8xb1_voc12aug.py'),
    ):
        runs = runner.plan(
            runner.find_task(*task), {'R': converted, 'S': 'none'}, tmp_path / task[0], options
        )
        assert [run.arguments[0] for run in runs] == [config, config], 'random weights take the same depth'
    with pytest.raises(InputError, match=r'is a resnet50.*demo-voc07.py is for a resnet18'):
        demo = runner.Options(demo=True, data_root=str(tiny_voc))
        runner.plan(runner.find_task('det', 'voc07'), {'R': converted}, tmp_path / 'd', demo)


def test_the_data_is_checked_before_anything_runs(in_repo, files, tiny_voc, tmp_path):
    next((tiny_voc / 'VOCdevkit/VOC2007/Annotations').glob('*.xml')).write_text('<annotation>')
    options = runner.Options(demo=True, data_root=str(tiny_voc))
    with pytest.raises(InputError, match=r'Annotations/\d+\.xml'):
        runner.plan(runner.find_task('det', 'voc07'), files, tmp_path / 'det', options)
    # Other lists by --cfg-options: those are the ones to be checked.
    lists = tiny_voc / 'VOCdevkit/VOC2012/ImageSets/Segmentation'
    (lists / 'aug.txt').unlink()
    options = runner.Options(
        demo=True,
        data_root=str(tiny_voc),
        cfg_options=['train_dataloader.dataset.datasets.1.ann_file=ImageSets/Segmentation/train.txt'],
    )
    assert len(runner.plan(runner.find_task('seg', 'voc12'), files, tmp_path / 'seg', options)) == 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['det', 'coco'], 'there are det voc07, det voc0712, seg voc12, probe voc07'),
        (['det', 'voc07', 'A'], "'A' is not NAME=CHECKPOINT"),
        (['det', 'voc07', 'A='], "'A=' is not NAME=CHECKPOINT"),
        (['det', 'voc07', 'a/b=x.pth'], 'cannot name a folder'),
        (['det', 'voc07', 'A=x.pth', 'A=x.pth'], 'A=x.pth is given twice'),
        (['det', 'voc07', 'A=missing.pth'], r'A=missing\.pth: .*does not exist'),
        (['det', 'voc07', 'A=none'], "'none' alone has no network to go by: say none:resnet50, or --config"),
        (['seg', 'voc12', 'A=none', '--gpus', '999'], '999 GPUs asked for'),
        (['seg', 'voc12', 'A=none', '--gpus', 'many'], 'a number is needed'),
        (['seg', 'voc12', 'A=none', '--demo', '--data-root', 'nowhere'], 'nowhere/VOCdevkit/VOC2012'),
        (
            'seg voc12 A=none --demo --data-root nowhere --cfg-options train_dataloader.batch_size=4'.split(),
            'follows from total_batch_size',
        ),
    ],
)
def test_mistakes_are_named(in_repo, arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_tool().main([*arguments, '--work-dir', str(tmp_path / 'w')])
    assert not (tmp_path / 'w').exists()


def test_a_truncated_checkpoint_is_named(in_repo, checkpoints, tmp_path):
    broken = tmp_path / 'broken.pth'
    broken.write_bytes(checkpoints['A'].read_bytes()[:100_000])
    with pytest.raises(InputError, match=r'broken\.pth'):
        load_tool().main(['det', 'voc07', f'A={broken}', '--work-dir', str(tmp_path / 'w')])


def test_two_backbones_from_checkpoints_to_table(in_repo, checkpoints, write_tiny_voc, tmp_path, capsys):
    """Through the tool itself, in its own processes; the second call runs nothing and says the same."""
    data = write_tiny_voc(tmp_path / 'data')
    command = [
        *[sys.executable, 'tools/run_transfer.py', 'seg', 'voc12', '--demo', '--data-root', str(data)],
        *['--parallel', '2', '--work-dir', str(tmp_path / 'w')],
        *[f'{name}={path}' for name, path in checkpoints.items()],
        *['--cfg-options', 'train_cfg.max_epochs=1', 'total_batch_size=2'],
    ]
    environment = {
        'PYTHONPATH': str(REPO),
        'OMP_NUM_THREADS': '1',
        'PATH': '/usr/bin:/bin',
        'CUDA_VISIBLE_DEVICES': '',
        'HOME': str(tmp_path),
    }
    first = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert first.returncode == 0, first.stdout + first.stderr
    results = {name: tmp_path / 'w' / 'seg_voc12' / name / 'seed0' / 'result.json' for name in checkpoints}
    written = {name: path.read_text() for name, path in results.items()}
    assert json.loads(written['A'])['sha256'] != json.loads(written['B'])['sha256']
    log = (results['A'].parent / 'stdout.log').read_text()
    assert 'backbone: 120 of 120 tensors equal' in log

    load_tool().main(command[2:])
    second = capsys.readouterr().out
    assert second.count('finished before') == 2
    assert {name: path.read_text() for name, path in results.items()} == written
    table = [line for line in first.stdout.splitlines() if line.startswith(('A ', 'B '))]
    # Two rows, and the verdict on B.
    assert len(table) == 3 and 'mIoU, 95% CI [' in table[-1]
    assert all(line in second for line in table)

    # What cannot stand in one table is known before it runs.
    other = [*command[2:], f'C={checkpoints["A"]}']
    other.remove(f'A={checkpoints["A"]}')
    other.remove(f'B={checkpoints["B"]}')
    other.insert(2, other.pop())
    other[other.index('total_batch_size=2')] = 'total_batch_size=4'
    with pytest.raises(InputError, match='come from two settings'):
        load_tool().main(other)
    assert not (tmp_path / 'w' / 'seg_voc12' / 'C').exists()

    # A mistake is one line and exit code 2.
    command[command.index('total_batch_size=2')] = 'total_batch_size=4'
    wrong = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert wrong.returncode == 2 and 'Traceback' not in wrong.stderr
    assert wrong.stderr.count('\n') == 1 and 'holds another run: config was' in wrong.stderr
