"""From drawing the data to the table, through the tools' own command lines, on a tiny world."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def run(*command):
    """Run a launcher in the environment of the tests."""
    env = {**os.environ, 'VIRTUAL_ENV': sys.prefix, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        ['bash', *map(str, command)], cwd=REPO, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The work dir of a finished ``tools/table5.sh``, the world it ran on and what it printed."""
    folder = tmp_path_factory.mktemp('table5')
    from transfer.emoji_world import WorldSize, ensure

    world, work_dir = folder / 'world', folder / 'work'
    ensure(world, size=WorldSize().scaled(0.03))
    printed = run('tools/table5.sh', '--demo-data', world, '--work-dir', work_dir, '--scratch')
    return work_dir, world, printed


def test_table5_writes_its_three_files(finished):
    work_dir, _, printed = finished
    table5 = json.loads((work_dir / 'table5.json').read_text())
    assert (table5['schema'], table5['data']) == (1, 'demo')
    assert [one['name'] for one in table5['backbones']] == ['BL', 'SD', 'scratch']
    for one in table5['backbones'][:2]:
        assert 0 <= one['pretrain']['top1'] <= one['pretrain']['top5'] <= 1
        assert Path(one['checkpoint']).is_file() and one['sha256'][:8] in one['checkpoint']
    for one in table5['backbones']:
        for task, metric in (('det', 'mAP_11point'), ('seg', 'mIoU')):
            assert one[task]['metric'] == metric and len(one[task]['values']) == 1
    names = [stage['name'] for stage in table5['stages']]
    assert names == ['data', 'pretrain', 'convert', 'det', 'seg', 'samples']
    assert table5['seconds'] == pytest.approx(sum(stage['seconds'] for stage in table5['stages']))
    assert '| BL |' in (work_dir / 'table5.md').read_text()
    assert '<svg' in (work_dir / 'report.html').read_text()
    assert 'mAP 11-point' in printed and 'scratch' in printed


def test_the_student_was_taught_in_its_second_mini_generation(finished):
    scalars = next((finished[0] / 'pretrain' / 'sd').glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    taught = {line['epoch']: 'loss_kl' in line for line in lines if 'loss' in line}
    assert taught and all(with_teacher == (epoch > 3) for epoch, with_teacher in taught.items())


def test_a_second_call_trains_nothing(finished):
    work_dir, world, _ = finished
    before = {path: path.stat().st_mtime_ns for path in work_dir.rglob('*.pth')}
    printed = run('tools/table5.sh', '--demo-data', world, '--work-dir', work_dir, '--scratch')
    assert printed.count('finished before') == 6
    assert {path: path.stat().st_mtime_ns for path in work_dir.rglob('*.pth')} == before


def test_more_pretrainings_are_added_and_make_methods_of_both(finished):
    work_dir, world, _ = finished
    printed = run('tools/table5.sh', '--demo-data', world, '--work-dir', work_dir, '--pretrainings', 2)
    assert printed.count('finished before') == 4
    assert (
        printed.count('2+2 pretrainings') == 3 and 'BL, SD: each seed has a pretraining of its own' in printed
    )
    table5 = json.loads((work_dir / 'table5.json').read_text())
    for backbone in table5['backbones']:
        assert len({one['sha256'] for one in backbone['pretrainings']}) == 2
        assert len(backbone['det']['values']) == len(backbone['seg']['values']) == 2
        folders = [work_dir / 'pretrain' / (backbone['name'].lower() + end) for end in ('', '_seed1')]
        found = [json.loads((folder / 'result.json').read_text())['top1'] for folder in folders]
        assert backbone['pretrain']['top1'] == pytest.approx(sum(found) / 2)
    report = (work_dir / 'report.html').read_text()
    assert 'BL 2' in report and 'SD, seed 1' in report
