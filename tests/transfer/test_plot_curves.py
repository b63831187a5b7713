import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.visualization import LocalVisBackend
from PIL import Image

from sd_pretrain.curves import Curves, read_curves
from transfer.charts import curve_charts
from transfer.plot_curves import COLOURS, look, plot_errors, read_runs

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 2  # in an epoch


def write_log(work_dir, stamp='20260101_000000', epochs=(1, 2, 3, 4), train=True, ends=(), gain=0.0):
    """A training's log by mmengine's own writer, in the order in which the hooks write it."""
    backend = LocalVisBackend(save_dir=work_dir / stamp / 'vis_data')
    for epoch in epochs:
        for step in range((epoch - 1) * ITERATIONS + 1, epoch * ITERATIONS + 1):
            backend.add_scalars({'lr': 0.1 / step, 'loss': 1.0, 'epoch': epoch, 'iter': step}, step=step)
        if train:
            backend.add_scalars({'train/top1': 12.0 * epoch + gain}, step=epoch)
        backend.add_scalars({'accuracy/top1': 10.0 * epoch + gain, 'accuracy/top5': 50.0}, step=epoch)
    if ends:
        text = f"custom_hooks = [dict(type='SnapshotDistillationHook', ends={list(ends)})]\n"
        (work_dir / 'config.py').write_text(text)
    return work_dir


def run_tool(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['plot_curves.py', *map(str, args)])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / 'tools' / 'plot_curves.py'), run_name='__main__')
    return exit.value.code


def test_errors_are_what_the_accuracies_leave(tmp_path):
    curves = read_curves(write_log(tmp_path))
    assert curves.train_error == [(1.0, 88.0), (2.0, 76.0), (3.0, 64.0), (4.0, 52.0)]
    assert curves.test_error == [(1.0, 90.0), (2.0, 80.0), (3.0, 70.0), (4.0, 60.0)]


def test_training_errors_of_a_resumed_run_count_from_where_it_began(tmp_path):
    write_log(tmp_path, '20260101_000000', (1, 2, 3, 4))
    write_log(tmp_path, '20260101_010000', (2, 3), gain=5.0)
    assert read_curves(tmp_path).train_top1 == [(1.0, 12.0), (2.0, 29.0), (3.0, 41.0)]


@pytest.mark.parametrize(
    'parts',
    [
        [('13', (1, 2)), ('05', (3, 4))],
        [('01', (1, 2)), ('03', (3,)), ('02', (4,))],
        # Resumed from an earlier epoch, which the names alone tell.
        [('01', (1, 2)), ('02', (3, 4)), ('03', (2,)), ('04', (3, 4))],
    ],
    ids=['another time zone', 'clock set back', 'again from an earlier epoch'],
)
def test_a_run_is_read_in_the_order_of_its_parts(tmp_path, parts):
    for gain, (hour, epochs) in enumerate(parts):
        write_log(tmp_path, f'20260101_{hour}0000', epochs, gain=gain)
    last = {epoch: 10.0 * epoch + gain for gain, (_, epochs) in enumerate(parts) for epoch in epochs}
    curves = read_curves(tmp_path)
    assert curves.top1 == [(float(epoch), last[epoch]) for epoch in (1, 2, 3, 4)]
    assert len(curves.loss) == 4 * ITERATIONS


def test_figure_of_two_runs_as_png_and_svg(tmp_path, monkeypatch, capsys):
    write_log(tmp_path / 'bl', ends=(4,))
    write_log(tmp_path / 'sd', ends=(2, 4), gain=3.0)
    assert (
        run_tool(monkeypatch, tmp_path / 'bl', f'S<D={tmp_path / "sd"}', '--out', tmp_path / 'a' / 'fig.1')
        == 0
    )
    png, svg = tmp_path / 'a' / 'fig.1.png', tmp_path / 'a' / 'fig.1.svg'
    assert capsys.readouterr().out.split() == [str(png), str(svg)]
    with Image.open(png) as image:
        pixels = np.asarray(image.convert('RGB')).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels == colour).all(1).sum() > 500
    text = svg.read_text()
    # matplotlib draws letters as paths and leaves the words in comments.
    for word in ('bl', 'S&lt;D', 'test', 'training', 'epoch', 'learning rate', 'top-1 error (%)'):
        assert f'<!-- {word} -->' in text, word
    # One boundary, in both panels.
    assert len(re.findall(r'stroke-dasharray: 2,3', text)) == 2


def test_no_two_of_many_runs_look_alike():
    looks = [look(index) for index in range(36)]
    assert len(set(looks)) == 36
    assert looks[0] == ('#0072b2', 'o') and looks[6] == ('#0072b2', 's')


def test_a_boundary_has_the_colour_of_its_run_unless_several_share_it(tmp_path):
    ends = {'A': [1, 3], 'B': [2, 3]}
    curves = {name: Curves(top1=[(1.0, 50.0), (4.0, 60.0)], boundaries=both) for name, both in ends.items()}
    text = plot_errors(curves, tmp_path / 'fig')[1].read_text()
    dotted = re.findall(r'style="([^"]*stroke-dasharray: 2,3[^"]*)"', text)
    found = [re.search(r'stroke: (#\w+)', style)[1] for style in dotted]
    # Each in both panels.
    assert sorted(found) == sorted([COLOURS[0], COLOURS[1], '#1d2126'] * 2)


@pytest.mark.parametrize('count', [3, 8])
def test_the_names_of_many_runs_have_room(count, tmp_path):
    curves = read_curves(write_log(tmp_path / 'run'))
    png, _ = plot_errors(
        {f'sd_resnet{number:03d}_imagenet': curves for number in range(count)}, tmp_path / 'a'
    )
    with Image.open(png) as image:
        assert (np.asarray(image.convert('L'))[:, -3:] == 255).all()  # nothing is cut at the edge


def test_runs_without_training_errors_still_have_a_figure(tmp_path):
    curves = read_runs([str(write_log(tmp_path / 'old', train=False))])
    files = plot_errors(curves, tmp_path / 'old.png')
    assert [path.name for path in files] == ['old.png', 'old.svg']
    assert '<!-- training -->' not in files[1].read_text()


def test_the_report_has_both_errors_too():
    both = Curves(top1=[(1.0, 50.0), (2.0, 60.0)], train_top1=[(1.0, 40.0), (2.0, 45.0)])
    ((title, svg),) = curve_charts({'BL': both})
    assert title == 'Test error (marked) and training error (thin)'
    assert len(re.findall(r'stroke: var\(--series-0\); stroke-width: 0.9', svg)) == 1
    ((title, svg),) = curve_charts({'BL': Curves(top1=both.top1)})
    assert title == 'Test error'
    assert 'stroke-width: 0.9' not in svg


def test_the_same_curves_give_the_same_file(tmp_path):
    curves = {'BL': Curves(top1=[(1.0, 50.0), (2.0, 60.0)], lr=[(0.5, 0.1), (2.0, 0.0)], boundaries=[1])}
    first, second = (plot_errors(curves, tmp_path / name)[1].read_bytes() for name in 'ab')
    assert first == second


def test_mistakes_are_explained(tmp_path, monkeypatch, capsys):
    run = write_log(tmp_path / 'x' / 'sd')
    other = write_log(tmp_path / 'y' / 'sd')
    detector = tmp_path / 'det' / '20260101_000000' / 'vis_data'
    detector.mkdir(parents=True)
    (detector / 'scalars.json').write_text(json.dumps({'loss': 1.0, 'iter': 1, 'epoch': 1, 'step': 1}))
    for args, message in (
        ((run, other), "two trainings are called 'sd'"),
        (('X=',), "'X=' is not WORK_DIR or NAME=WORK_DIR"),
        ((tmp_path / 'nothing',), 'not the work dir of a training'),
        ((tmp_path / 'det',), 'neither accuracy/top1 nor train/top1'),
    ):
        assert run_tool(monkeypatch, *args, '--out', tmp_path / 'fig') == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'fig.png').exists()
