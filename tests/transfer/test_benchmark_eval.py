"""The benchmark of evaluation and fine-tuning: every table is there, and both sides compute the same."""

import argparse

import pytest

from transfer.benchmark_eval import _Run, add_arguments, measure
from transfer.emoji_world import WorldSize, ensure


def test_all_tables_in_one_quick_round():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(['--step-batch', '2'])
    args.quick, args.rounds, args.device, args.data_root = True, 1, 'cpu', None
    sections = {section.name: section for section in measure(args)}
    tasks = ('finetune_det', 'evaluate_det', 'finetune_seg', 'evaluate_seg')
    assert list(sections) == ['eval_map', 'eval_pixels', *tasks]
    assert sections['eval_map'].data['difference'] == 0
    for name in tasks:
        rows = [row[0] for row in sections[name].rows]
        assert rows[:2] == ['stock, float32', 'ours, float32']
        assert all(len(some) >= 1 for some in sections[name].data['seconds'].values())
        assert '2 images' in sections[name].title or 'evaluate' in name
        assert 'spent on getting the images: stock' in ''.join(sections[name].notes) or 'evaluate' in name


@pytest.mark.parametrize(('task', 'images'), [('det', 16), ('seg', 8)])
def test_a_full_size_step_has_the_batch_of_the_recipe(task, images, tmp_path):
    # One process's share of eight has one image for segmentation: too few for batch normalisation.
    ensure(tmp_path / 'world', size=WorldSize(1, 1, 72, 32, 16, 16, 16, 16))
    assert _Run(task, 18, tmp_path / 'world', tmp_path / 'run', None).batch == images
