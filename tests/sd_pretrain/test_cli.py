"""What every tool says where the disk or the reader of its output fails, and not the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd_pretrain.cli import run_main

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.mark.parametrize('full', ['epoch_1.pth', 'snapshot_1.pth.part'])
def test_a_full_disk_is_one_line(refused, tiny_config, tmp_path, full):
    work_dir = tmp_path / 'new'
    work_dir.mkdir()
    (work_dir / full).symlink_to('/dev/full')
    said = refused(tiny_config)
    assert said.startswith('error: No space left on device; mend that and give the same command again')


def test_a_work_dir_that_cannot_be_made_is_named(refused, tiny_config, tmp_path):
    (tmp_path / 'file').touch()
    said = refused(tiny_config, work_dir=tmp_path / 'file')
    assert said.startswith(f'error: File exists: {tmp_path}/file; mend that')


@pytest.mark.parametrize(
    ('arguments', 'unbuffered'), [('--help', ''), ('--data-root none', ''), ('--data-root none', '1')]
)
def test_a_reader_that_has_gone_ends_a_tool_silently(arguments, unbuffered):
    command = f'{sys.executable} {TOOLS}/check_data.py {arguments} | true; echo ${{PIPESTATUS[0]}}'
    env = {**os.environ, 'PYTHONUNBUFFERED': unbuffered}
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, cwd=TOOLS.parent, env=env)
    assert (done.stdout, done.stderr) == ('141\n', '')


def test_another_pipe_that_breaks_is_no_reader_that_has_gone(monkeypatch, tmp_path):
    def broken():
        raise BrokenPipeError

    with (tmp_path / 'out').open('w') as file, monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', file)
        with pytest.raises(BrokenPipeError):
            run_main(broken)
