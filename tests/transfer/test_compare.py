"""Comparing logged runs, also such as our tools did not write."""

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from sd_pretrain.cli import InputError, set_data_root
from transfer import mmcv_ops
from transfer.compare import compare_runs, group_runs, write
from transfer.logs import read_run

REPO = Path(__file__).resolve().parents[2]
CONFIG = """
val_dataloader = dict(dataset=dict(type='VOCDataset', ann_file='{images}'))
val_evaluator = dict(type='VOCMetric', metric='mAP', eval_mode='{mode}')
"""


def leave(folder, values, mode='11points', images='test.txt', text=False):
    """A work dir as mmengine leaves it: evaluations after epochs 1, 2, ..., between lines of training."""
    path = folder / '20260101_000000'
    (path / 'vis_data').mkdir(parents=True)
    (folder / 'config.py').write_text(CONFIG.format(mode=mode, images=images))
    scalars, lines = [], []
    for epoch, value in enumerate(values, 1):
        where = {'epoch': epoch, 'iter': 10 * epoch, 'step': 10 * epoch}
        scalars.append({'lr': 0.1, 'loss': 1.0, 'acc': 50.0, **where})
        found = {'pascal_voc/mAP': value, 'pascal_voc/AP50': round(value, 3)}
        scalars.append({**found, 'time': 0.1, 'step': epoch})
        said = '  '.join(f'{key}: {number:.4f}' for key, number in {**found, 'data_time': 0.0041}.items())
        lines.append(f'2026/01/01 00:00:00 - mmengine - INFO - Epoch(val) [{epoch}][12/12]    {said}')
    if text:
        (path / '20260101_000000.log').write_text('\n'.join(lines) + '\n')
    else:
        (path / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, scalars)) + '\n')
    return folder


@pytest.fixture(scope='module')
def stock_run(tmp_path_factory, write_tiny_voc):
    """Stock mmdet trains and evaluates our config; nothing of ours is in between."""
    mmcv_ops.install()
    init_default_scope('mmdet')
    folder = tmp_path_factory.mktemp('stock')
    cfg = Config.fromfile(REPO / 'configs/demo/faster-rcnn_r18-c4_demo-voc07.py')
    set_data_root(cfg, write_tiny_voc(folder / 'data'))
    cfg.work_dir = str(folder / 'work')
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.train_dataloader.batch_size = 2
    cfg.model.backbone.init_cfg = cfg.model.roi_head.shared_head.init_cfg = None
    Runner.from_cfg(cfg).train()
    return folder / 'work'


def test_an_untouched_mmdet_work_dir(stock_run, tmp_path):
    run = read_run(stock_run)
    assert set(run.metrics) == {'11point/mAP', '11point/AP50', 'area/mAP', 'area/AP50'}
    assert run.tested_on['image list'].endswith('test.txt')
    text_only = shutil.copytree(stock_run, tmp_path / 'work')
    shutil.rmtree(next(text_only.glob('*/vis_data')))
    assert read_run(text_only).metrics == pytest.approx(run.metrics, abs=5e-5)


def test_the_last_evaluation_counts_over_all_starts(tmp_path):
    folder = leave(tmp_path / 'run', [0.1, 0.2])
    later = folder / '20260101_000001' / 'vis_data'
    later.mkdir(parents=True)
    (later / 'scalars.json').write_text('{"pascal_voc/mAP": 0.3, "step": 3}\n{"pascal_voc/mAP": 0.')
    assert read_run(folder).metrics['pascal_voc/mAP'] == 0.3


def test_a_run_that_was_broken_off_is_named(tmp_path):
    done, broken = leave(tmp_path / 'done', [0.1, 0.2, 0.3]), leave(tmp_path / 'broken', [0.1, 0.2])
    for folder in (done, broken):
        config = folder / 'config.py'
        config.write_text(config.read_text() + 'train_cfg = dict(by_epoch=True, max_epochs=3)\n')
    assert not read_run(done).half_written
    with pytest.raises(InputError, match=r'broken is half-written: its last evaluation is at 2 of 3'):
        compare_runs(group_runs([f'A={done}', f'B={broken}']))


def seeds(folder, values, **settings):
    for seed, value in enumerate(values):
        leave(folder / f'seed{seed}', [0.0, value], **settings)
    return str(folder)


def test_groups_of_seeds_and_their_difference(tmp_path):
    groups = group_runs(
        [seeds(tmp_path / 'BL', [0.70, 0.72, 0.71]), f'SD={seeds(tmp_path / "x", [0.74, 0.75, 0.76])}']
    )
    base, other = compare_runs(groups, ['pascal_voc/mAP'])
    assert (base.name, other.name, base.difference) == ('BL', 'SD', None)
    assert base.mean == pytest.approx(0.71) and base.sd == pytest.approx(0.01)
    assert other.change == pytest.approx(0.04) and other.difference.paired
    assert 0 < other.difference.low < 0.04 < other.difference.high


def test_runs_that_name_no_seed_are_no_pairs_whatever_their_order(tmp_path):
    values = {'BL': (0.70, 0.71, 0.72), 'SD': (0.711, 0.721, 0.73)}
    named = {
        name: [f'{name}={leave(tmp_path / f"{name}{place}", [value])}' for place, value in enumerate(some)]
        for name, some in values.items()
    }
    _, line = compare_runs(group_runs([*named['BL'], *named['SD']]), ['pascal_voc/mAP'])
    _, other = compare_runs(group_runs([*named['BL'], *reversed(named['SD'])]), ['pascal_voc/mAP'])
    assert not line.difference.paired
    assert (line.difference.low, line.difference.high) == pytest.approx(
        (other.difference.low, other.difference.high)
    )


def test_equal_rounded_differences_are_no_certainty(tmp_path):
    groups = group_runs([seeds(tmp_path / 'BL', [0.712, 0.714]), seeds(tmp_path / 'SD', [0.715, 0.717])])
    _, line = compare_runs(groups, ['pascal_voc/mAP'])
    assert line.change == pytest.approx(0.003) and line.difference is None


def test_two_folders_of_one_name_need_names(tmp_path):
    one, two = (leave(tmp_path / name / 'det', [0.5]) for name in 'ab')
    with pytest.raises(InputError, match='are both called det: say NAME='):
        group_runs([str(one), str(two)])
    assert list(group_runs([str(one), f'B={two}'])) == ['det', 'B']


def test_folders_named_from_within_have_their_names(tmp_path, monkeypatch):
    seeds(tmp_path / 'BL', [0.5, 0.6])
    monkeypatch.chdir(tmp_path / 'BL')
    assert list(group_runs(['.'])) == list(group_runs(['seed0', 'seed1'])) == ['BL']


def test_several_folders_under_one_name(tmp_path):
    one, two = (leave(tmp_path / name, [value]) for name, value in (('a', 0.5), ('b', 0.6)))
    groups = group_runs([f'BL={one}', f'BL={two}'])
    assert [run.metrics['pascal_voc/mAP'] for run in groups['BL'].values()] == [0.5, 0.6]


def test_every_format_has_the_numbers(tmp_path):
    lines = compare_runs(
        group_runs([seeds(tmp_path / 'B_L', [0.70, 0.72]), seeds(tmp_path / 'SD', [0.75, 0.74])])
    )
    found = list(csv.reader(io.StringIO(write(lines, 'csv'))))
    assert found[0][:4] == ['metric', 'runs of', 'n', 'mean'] and len(found) == 5
    assert found[1][:5] == ['pascal_voc/mAP', 'B_L', '2', '0.7100', '0.0141']
    assert json.loads(write(lines, 'json'))[1]['difference'] == pytest.approx(0.035)
    assert write(lines, 'markdown').splitlines()[2].startswith('| pascal_voc/mAP | B_L | 2 | 0.7100 |')
    latex = write(lines, 'latex')
    assert r'pascal\_voc/mAP & B\_L & 2 & 0.7100' in latex and r'\midrule' in latex and '$+$0.0350' in latex
    odd = write([replace(lines[0], name='a^2~b')], 'latex')
    assert r'a\textasciicircum 2\textasciitilde b' in odd
    assert '<td>0.7450</td>' in write(lines, 'html')
    assert '0.7450' in write(lines, 'terminal')


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(mode='area'), 'evaluation is .*eval_mode=11points.* and .*eval_mode=area'),
        (dict(images='val.txt'), r'image list is test\.txt and val\.txt'),
    ],
)
def test_runs_that_were_tested_differently_are_refused(tmp_path, change, message):
    groups = group_runs([str(leave(tmp_path / 'a', [0.5])), str(leave(tmp_path / 'b', [0.5], **change))])
    with pytest.raises(InputError, match=f'cannot be compared: {message}'):
        compare_runs(groups)


def test_a_test_by_itself_was_tested_on_the_test_images(tmp_path):
    runs = [leave(tmp_path / name, [0.5], text=True) for name in 'ab']
    for run in runs:
        (log,) = run.glob('*/*.log')
        log.write_text(log.read_text().replace('Epoch(val) [1]', 'Epoch(test) '))
        config = run / 'config.py'
        test = config.read_text().replace('val_', 'test_').replace('test.txt', f'{run.name}.txt')
        config.write_text(config.read_text() + test)
    assert read_run(runs[0]).metrics['pascal_voc/mAP'] == 0.5
    with pytest.raises(InputError, match=r'cannot be compared: image list is a\.txt and b\.txt'):
        compare_runs(group_runs(list(map(str, runs))))


def test_mistakes_are_named(tmp_path):
    run = leave(tmp_path / 'run', [0.5], text=True)
    with pytest.raises(InputError, match='has no metric mIoU; it has pascal_voc/mAP, pascal_voc/AP50'):
        compare_runs(group_runs([str(run)]), ['mIoU'])
    for argument in ('', 'X=', f'={tmp_path}'):
        with pytest.raises(InputError, match=f"'{argument}' is not WORK_DIR or NAME=WORK_DIR"):
            group_runs([argument])
    with pytest.raises(InputError, match='no work dir .*nowhere'):
        group_runs([str(tmp_path / 'nowhere')])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='empty holds no log of mmengine'):
        group_runs([str(tmp_path / 'empty')])
    with pytest.raises(InputError, match='a log, but no evaluation'):
        read_run(leave(tmp_path / 'early', []))


def leave_by_iterations(folder, last, extra='', text=False):
    """A work dir of mmengine's IterBasedTrainLoop with its default LoggerHook: evaluations have step 0."""
    (folder / 'now' / 'vis_data').mkdir(parents=True)
    scalars, lines = [], []
    for iteration in range(50, last + 1, 50):
        scalars.append({'lr': 0.1, 'loss': 1.0, 'iter': iteration, 'step': iteration})
        lines.append(f'mmengine - INFO - Iter(train) [{iteration:3d}/120]  lr: 1.0000e-01  loss: 1.0000')
    scalars.append({'coco/bbox_mAP': 0.5, 'coco/stop sign_precision': 0.4, 'time': 0.1, 'step': 0})
    lines.append(
        'mmengine - INFO - Iter(val) [9/9]    coco/bbox_mAP: 0.5000  coco/stop sign_precision: 0.4000'
    )
    train = 'train_cfg = dict(by_epoch=False, max_iters=120, val_interval=60)\n'
    logger = 'default_hooks = dict(logger=dict(type="LoggerHook", interval=50))\n'
    (folder / 'config.py').write_text(CONFIG.format(mode='area', images='test.txt') + train + logger + extra)
    if text:
        (folder / 'now' / 'now.log').write_text('\n'.join(lines) + '\n')
    else:
        (folder / 'now' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, scalars)) + '\n')
    return folder


@pytest.mark.parametrize('text', [False, True])
def test_a_run_by_iterations_has_come_to_its_end_or_not(tmp_path, text):
    done = read_run(leave_by_iterations(tmp_path / 'done', 120, text=text))
    assert (done.evaluated_at, done.planned, done.half_written) == (120, 120, False)
    broken = read_run(leave_by_iterations(tmp_path / 'broken', 60, text=text))
    assert (broken.evaluated_at, broken.half_written) == (50, True)
    assert set(done.metrics) == {'coco/bbox_mAP', 'coco/stop sign_precision'}


@pytest.mark.parametrize('unit, steps', [('epoch', [(1, 2), (3,)]), ('iter', [(50, 100), (150,)])])
def test_a_run_that_was_resumed_in_another_time_zone(tmp_path, unit, steps):
    """Its first part bears the later name."""
    kind = 'max_epochs=3' if unit == 'epoch' else 'max_iters=150'
    logger = 'default_hooks = dict(logger=dict(type="LoggerHook", interval=50))\n'
    (tmp_path / 'config.py').write_text(
        f'val_dataloader = dict(dataset=dict())\ntrain_cfg = dict({kind})\n{logger}'
    )
    for hour, part in zip(('13', '05'), steps, strict=True):
        path = tmp_path / f'20260101_{hour}0000' / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        lines = [
            line
            for step in part
            for line in (
                {'loss': 1.0, 'iter': 50 * step, unit: step, 'step': step},
                {'mIoU': step, 'step': step},
            )
        ]
        path.write_text('\n'.join(map(json.dumps, lines)))
    run = read_run(tmp_path)
    assert (run.metrics['mIoU'], run.half_written) == (steps[1][-1], False)


def test_a_run_with_a_text_log_alone_that_was_broken_off(tmp_path):
    folder = leave(tmp_path / 'run', [0.1, 0.2], text=True)
    with (folder / 'config.py').open('a') as config:
        config.write('train_cfg = dict(by_epoch=True, max_epochs=3)\n')
    assert read_run(folder).half_written


def test_a_run_that_stopped_early_is_at_its_end(tmp_path):
    hook = 'custom_hooks = [dict(type="EarlyStoppingHook", monitor="coco/bbox_mAP")]\n'
    assert not read_run(leave_by_iterations(tmp_path / 'run', 60, hook)).half_written


def test_a_class_that_no_test_image_shows_has_no_value(tmp_path):
    runs = [str(leave(tmp_path / name, [0.5])) for name in 'ab']
    for run in runs:
        path = next(Path(run).glob('*/vis_data/scalars.json'))
        path.write_text(path.read_text() + json.dumps({'coco/cow_precision': math.nan, 'step': 1}))
    assert {line.metric for line in compare_runs(group_runs(runs))} == {'pascal_voc/mAP', 'pascal_voc/AP50'}
    with pytest.raises(InputError, match=r'a: coco/cow_precision of the last evaluation is nan'):
        compare_runs(group_runs(runs), ['coco/cow_precision'])
    path.write_text(path.read_text().replace('NaN', '0.5'))
    with pytest.raises(InputError, match=r'a: coco/cow_precision of the last evaluation is nan'):
        compare_runs(group_runs(runs))


def test_runs_on_other_folders_of_images_are_refused(tmp_path):
    runs = [leave(tmp_path / name, [0.5]) for name in ('val', 'train')]
    for run in runs:
        folder = f'data_prefix=dict(img_path="images/{run.name}")'
        config = run / 'config.py'
        config.write_text(config.read_text().replace("ann_file='test.txt'", folder))
    with pytest.raises(
        InputError, match='cannot be compared: image list is .*images/val.* and .*images/train'
    ):
        compare_runs(group_runs(list(map(str, runs))))


def test_a_folder_with_an_equals_sign_in_its_name(tmp_path):
    run = str(leave(tmp_path / 'lr=0.01', [0.5]))
    assert list(group_runs([run, f'B={run}'])) == ['lr=0.01', 'B']
