"""Logs for TensorBoard arrive with both loss terms; a package that is not there is named."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from sd_pretrain import vis_backends
from sd_pretrain.cli import InputError
from sd_pretrain.prepare import load_config
from transfer.run_record import load_config as load_transfer_config

REPO = Path(__file__).resolve().parents[2]
CONFIG = """
_base_ = '{base}'
visualizer = dict(type='{type}', vis_backends=[dict(type='LocalVisBackend'), dict(type='{backend}')])
"""


def config(tmp_path, base, backend, kind='Visualizer'):
    path = tmp_path / 'my_config.py'
    path.write_text(CONFIG.format(base=REPO / 'configs/demo' / base, type=kind, backend=backend))
    return path


@pytest.mark.parametrize(
    ('backend', 'extra'),
    [
        ('TensorboardVisBackend', 'tensorboard'),
        ('WandbVisBackend', 'wandb'),
        ('MLflowVisBackend', 'mlflow'),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, backend, extra):
    monkeypatch.setattr(vis_backends, 'find_spec', lambda name: None)
    message = rf"{backend} needs the package {extra}: pip install -e '\.\[{extra}\]'"
    with pytest.raises(InputError, match=message):
        load_config(config(tmp_path, 'sd_r18_demo.py', backend))
    detector = config(tmp_path, 'faster-rcnn_r18-c4_demo-voc07.py', backend, 'DetLocalVisualizer')
    with pytest.raises(InputError, match=message):
        load_transfer_config(detector)


@pytest.mark.skipif(find_spec('tensorboard') is None, reason='tensorboard is not installed')
def test_both_loss_terms_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = load_config(config(tmp_path, 'sd_r18_demo.py', 'TensorboardVisBackend'))
    from mmengine.registry import VISUALIZERS

    visualizer = VISUALIZERS.build({**cfg.visualizer, 'name': str(tmp_path), 'save_dir': str(tmp_path)})
    visualizer.add_scalars({'loss_ce': 1.5, 'loss_kl': 0.25}, step=3)
    visualizer.close()
    (events,) = (tmp_path / 'vis_data').glob('events*')
    stored = EventAccumulator(str(events))
    stored.Reload()
    assert {tag: stored.Scalars(tag)[0].value for tag in ('loss_ce', 'loss_kl')} == {
        'loss_ce': 1.5,
        'loss_kl': 0.25,
    }
