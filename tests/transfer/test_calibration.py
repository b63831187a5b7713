"""The intervals and verdicts keep their word in simulated comparisons."""

import importlib.util
from pathlib import Path

import pytest

from sd_pretrain.cli import InputError
from transfer.calibration import simulate

REPO = Path(__file__).resolve().parents[2]


def within(rate, due, one, errors=3.0):
    return abs(rate - due) <= errors * one.error(due)


def test_identical_backbones_are_called_different_in_five_percent():
    one = simulate(5, 0.0, trials=1000)
    assert within(one.found, 0.05, one), one
    assert within(one.covered, 0.95, one), one


def test_a_true_difference_is_found_as_often_as_the_power_estimate_says():
    one = simulate(5, 0.015, trials=1000)
    assert 0.3 < one.expected < 0.7
    assert within(one.found, one.expected, one), one
    # A little cautious: what is known of seeds and images is put together on the safe side.
    assert 0.94 <= one.covered <= 0.98, one


def test_the_command_prints_the_rates(capsys):
    spec = importlib.util.spec_from_file_location('calibrate', REPO / 'tools/calibrate.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main(['--runs', '3', '--true', '0', '1', '--trials', '20', '--images', '50'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].split()[:2] == ['3', '+0.0']
    with pytest.raises(InputError, match='at least 2'):
        tool.main(['--runs', '1'])
