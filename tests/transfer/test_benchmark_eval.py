"""The benchmark of evaluation and fine-tuning: every table is there, and both sides compute the same."""

import argparse
from collections import namedtuple

import pytest

from transfer import benchmark_eval, mmcv_ops
from transfer.benchmark_eval import _Run, add_arguments, measure
from transfer.emoji_world import WorldSize, ensure

mmcv_ops.install()


Section = namedtuple('Section', 'name')


def quick_round(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(['--step-batch', '2', *arguments])
    args.quick, args.rounds, args.device, args.data_root = True, 1, 'cpu', None
    return {section.name: section for section in measure(args)}


def test_the_tables_of_one_task(monkeypatch):
    monkeypatch.setattr(benchmark_eval, '_METRICS', {'seg': lambda args: Section('metric')})
    monkeypatch.setattr(benchmark_eval, '_data', lambda *_: None)
    monkeypatch.setattr(benchmark_eval, '_task_sections', lambda args, task, *_: [Section(task)])
    assert list(quick_round('--task', 'seg')) == ['metric', 'seg']


def test_all_tables_in_one_quick_round():
    sections = quick_round()
    tasks = ('finetune_det', 'evaluate_det', 'finetune_seg', 'evaluate_seg')
    assert list(sections) == ['eval_map', 'eval_pixels', *tasks]
    assert sections['eval_map'].data['difference'] == 0
    for name in tasks:
        rows = [row[0] for row in sections[name].rows]
        assert rows[:2] == ['stock, float32', 'ours, float32']
        assert all(len(some) >= 1 for some in sections[name].data['seconds'].values())
        assert '2 images' in sections[name].title or 'evaluate' in name
        assert 'spent on getting the images: stock' in ''.join(sections[name].notes) or 'evaluate' in name


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp('emoji') / 'world'
    ensure(root, size=WorldSize(1, 1, 72, 32, 16, 16, 16, 16))
    return root


@pytest.mark.parametrize('ours', [False, True], ids=['stock', 'ours'])
@pytest.mark.parametrize(('task', 'images'), [('det', 16), ('seg', 8)])
def test_a_full_size_step_has_the_batch_of_the_recipe_and_an_epoch_is_long(
    task, images, ours, world, tmp_path
):
    # One process's share of eight has one image for segmentation: too few for batch normalisation.
    run = _Run(task, 18, world, tmp_path / 'run', None, ours=ours)
    assert run.batch == images
    # 5,120 images instead of 32, of which detection leaves out those without a box.
    assert len(run.runner.train_dataloader) > 300
    assert len(_Run(task, None, world, tmp_path / 'demo', None, ours=ours).runner.train_dataloader) == 8
