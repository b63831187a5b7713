"""The pretraining configs: every one parses, and says what the paper says."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from sd_pretrain.prepare import load_config, mini_generations

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LEAVES = [f'{a}_r{d}_imagenet.py' for a in ('bl', 'se', 'sd') for d in (18, 34, 50, 101, 152)]
DEMO = [f'demo/{a}_r18_demo.py' for a in ('bl', 'se', 'sd')]
LAYERS = {'r18': 62, 'r34': 110, 'r50': 161, 'r101': 314, 'r152': 467}


@pytest.mark.parametrize('name', LEAVES + DEMO)
def test_config_builds_its_network_and_agrees_with_itself(name):
    cfg = load_config(CONFIGS / name)
    algorithm, depth, _ = Path(name).stem.split('_')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert len(list(model.parameters())) == LAYERS[depth]
    assert model.network.fc.out_features == cfg.model.num_classes
    hook = mini_generations(cfg)
    periods = cfg.param_scheduler[0].periods
    assert [sum(periods[: k + 1]) for k in range(len(periods))] == hook.ends
    assert (len(hook.ends), hook.distill) == {'bl': (1, False), 'se': (2, False), 'sd': (2, True)}[algorithm]
    assert cfg.work_dir == str(Path('work_dirs') / Path(name).stem)
    assert cfg.randomness.seed is not None


@pytest.mark.parametrize('algorithm, ends', [('bl', [90]), ('se', [45, 90]), ('sd', [45, 90])])
def test_recipe_of_section_4_2(algorithm, ends):
    cfg = load_config(CONFIGS / f'{algorithm}_r152_imagenet.py')
    assert dict(cfg.optim_wrapper.optimizer) == {
        'type': 'FusedSGD',
        'lr': 0.1,
        'momentum': 0.9,
        'nesterov': True,
        'weight_decay': 1e-4,
    }
    assert cfg.total_batch_size == 8 * cfg.train_dataloader.batch_size == 256
    assert cfg.train_cfg.max_epochs == 90
    assert cfg.custom_hooks[0].ends == ends
    assert cfg.custom_hooks[0].get('temperature') == (2 if algorithm == 'sd' else None)
    assert cfg.model.network_args.zero_init_last is False
    assert (cfg.val_dataloader.dataset.resize, cfg.val_dataloader.dataset['size']) == (256, 224)


def test_data_root_replaces_the_leading_data():
    cfg = load_config(CONFIGS / 'sd_r18_imagenet.py', data_root='/sets')
    assert (
        cfg.train_dataloader.dataset.data_root == cfg.val_dataloader.dataset.data_root == '/sets/ILSVRC2012'
    )
    demo = load_config(CONFIGS / 'demo/sd_r18_demo.py')
    assert demo.train_dataloader.dataset.data_root == 'work_dirs/demo_data/ILSVRC2012'
    demo = load_config(CONFIGS / 'demo/sd_r18_demo.py', data_root='/sets')
    assert demo.train_dataloader.dataset.data_root == '/sets/ILSVRC2012'


def test_print_config_fills_in_the_bases(run_tool, capsys):
    options = ['--cfg-options', 'optim_wrapper.optimizer.lr=0.3']
    assert run_tool('print_config.py', CONFIGS / 'sd_r18_imagenet.py', *options) == 0
    out = capsys.readouterr().out
    assert "type='SnapshotDistillationHook'" in out
    assert 'lr=0.3' in out
    assert run_tool('print_config.py', CONFIGS / 'none.py') == 2
    assert capsys.readouterr().err.startswith('error: no config')


@pytest.mark.parametrize('option', ['lr', 'ends=[1,2'])
@pytest.mark.parametrize('tool', ['train.py', 'print_config.py'])
def test_options_that_are_not_key_and_value(run_tool, tool, option, capsys):
    assert run_tool(tool, CONFIGS / 'sd_r18_imagenet.py', '--cfg-options', 'a=1', option) == 2
    assert f'error: --cfg-options a=1 {option}: KEY=VALUE' in capsys.readouterr().err


def test_amp_replaces_a_loss_scaling_wrapper():
    scaling = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'}
    wrapper = load_config(CONFIGS / 'demo/sd_r18_demo.py', options=scaling, amp=True).optim_wrapper
    assert wrapper.type == 'Bf16OptimWrapper' and 'loss_scale' not in wrapper
