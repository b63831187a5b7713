"""What a training has logged, over its parts, as curves."""

import pytest
from curves_common import leave_config, log

from sd_pretrain.cli import InputError
from sd_pretrain.curves import read_curves


def test_curves_of_one_run(tmp_path):
    curves = read_curves(log(tmp_path, '20260101_000000', 1, 2))
    assert curves.loss == [(0.5, 1.0), (1.0, 1.0), (1.5, 1.0), (2.0, 1.0)]
    assert curves.lr == [(0.5, 0.1), (1.0, 0.1), (1.5, 0.1), (2.0, 0.1)]
    assert curves.top1 == [(1.0, 10.0), (2.0, 20.0)]
    assert curves.boundaries == []


def test_after_a_resume_the_later_run_counts(tmp_path):
    log(tmp_path, '20260101_000000', 1, 3, loss=1.0)
    log(tmp_path, '20260101_010000', 3, 4, loss=0.5)
    curves = read_curves(tmp_path)
    assert [value for _, value in curves.loss] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    assert curves.top1 == [(1.0, 10.0), (2.0, 20.0), (3.0, 15.0), (4.0, 20.0)]


def test_what_a_resumed_run_has_not_reached_again_does_not_count(tmp_path):
    log(tmp_path, '20260101_000000', 1, 4, loss=1.0)
    log(tmp_path, '20260101_010000', 2, 3, loss=0.5)
    curves = read_curves(tmp_path)
    assert curves.loss == [(0.5, 1.0), (1.0, 1.0), (1.5, 0.5), (2.0, 0.5), (2.5, 0.5), (3.0, 0.5)]
    assert curves.top1 == [(1.0, 10.0), (2.0, 10.0), (3.0, 15.0)]


def test_a_half_written_line_is_skipped(tmp_path):
    log(tmp_path, '20260101_000000', 1, 1)
    path = tmp_path / '20260101_000000' / 'vis_data' / 'scalars.json'
    path.write_text(path.read_text() + '{"loss": 0.')
    assert len(read_curves(tmp_path).loss) == 2


def test_mini_generation_ends_come_from_the_config_but_for_the_last(tmp_path):
    log(tmp_path, '20260101_000000', 1, 4)
    leave_config(tmp_path, [2, 4])
    assert read_curves(tmp_path).boundaries == [2]


def test_folder_without_log_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r'holds no <timestamp>/vis_data/scalars\.json'):
        read_curves(tmp_path)
