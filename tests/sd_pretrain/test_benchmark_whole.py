"""Whole runs in turns: what is trained, how they take turns, and what becomes of one that fails."""

import sys

import pytest
import torch

from sd_pretrain import benchmark_whole
from sd_pretrain.benchmark_steps import Setting
from sd_pretrain.benchmark_whole import take_turns, whole_runs
from sd_pretrain.cli import InputError, RunFailedError
from sd_pretrain.experiments import parse_options
from sd_pretrain.prepare import load_config, mini_generations
from sd_pretrain.process import Job, is_locked

# Computes for some seconds; the longest time that it did not, it says at the end.
COMPUTE = """
import time
print('begun', flush=True)
before, gap = time.monotonic(), 0
while time.process_time() < {}:
    now = time.monotonic()
    before, gap = now, max(gap, now - before)
print(gap)
"""


def job(folder, name, code):
    return Job(name, [sys.executable, '-c', code], folder / name / 'log')


def test_processes_take_turns_to_their_ends(tmp_path):
    jobs = [job(tmp_path, name, COMPUTE.format(seconds)) for name, seconds in (('short', 0.4), ('long', 1.2))]
    short, long = take_turns(jobs, 'begun', turn=0.15)
    assert short > 0.2 and long > 1.0
    for one in jobs:
        assert float(one.log.read_text().split()[-1]) > 0.1, f'{one.name} was never stopped'


def test_one_that_fails_ends_all(tmp_path):
    jobs = [job(tmp_path, 'sound', COMPUTE.format(60)), job(tmp_path, 'broken', 'print("begun"); 1 / 0')]
    with pytest.raises(RunFailedError, match=r'(?s)broken ended with exit code 1.*ZeroDivisionError'):
        take_turns(jobs, 'begun', turn=0.1)
    assert not is_locked(jobs[0].log)


def test_whole_runs_of_bl_and_sd(monkeypatch):
    monkeypatch.setattr(benchmark_whole, '_BATCHES', 2)
    section = whole_runs(Setting('resnet18', torch.device('cpu')), 2, 32, 1, None)
    assert [row[0] for row in section.rows] == ['BL', 'SD', 'SD, teacher in bfloat16']
    seconds = section.data['seconds']
    assert all(len(values) == 1 and values[0] > 0 for values in seconds.values())
    assert section.data['over_bl']['SD']['median'] == seconds['SD'][0] / seconds['BL'][0]
    assert '2 epochs of 2 steps on 4 generated images (4 files)' in section.notes[0]


def test_images_in_no_class_folders_are_refused(tmp_path):
    (tmp_path / 'ILSVRC2012/train/n0').mkdir(parents=True)
    (tmp_path / 'ILSVRC2012/train/n0/a.JPEG').touch()
    with pytest.raises(InputError, match='val has no class folders with images, which --whole needs'):
        whole_runs(Setting('resnet18', torch.device('cpu')), 2, 32, 1, tmp_path)


@pytest.mark.parametrize('kind', ['bl', 'sd'])
def test_whole_runs_are_of_two_mini_generations(kind):
    setting = Setting('resnet50', torch.device('cpu'), compile=True)
    options = parse_options(benchmark_whole._options(setting, kind, 8, 64, 24, 'bfloat16'))
    cfg = load_config(f'configs/{kind}_r18_imagenet.py', options=options)
    hook = mini_generations(cfg)
    assert (hook['ends'], hook['distill']) == (([1, 2], True) if kind == 'sd' else ([2], False))
    assert hook['teacher_options'] == {'precision': 'bfloat16'}
    assert cfg.model.network == 'resnet50' and cfg.model.compile
    assert cfg.param_scheduler[0].periods == ([1, 1] if kind == 'sd' else [2])
    assert (cfg.total_batch_size, cfg.model.num_classes) == (8, 24)
    assert cfg.train_dataloader.dataset['size'] == cfg.val_dataloader.dataset['size'] == 64
