"""Reading configs, while another process is still writing what they are printed with; options with paths."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from yapf.yapflib import yapf_api

from sd_pretrain.cli import read_config
from sd_pretrain.experiments import parse_options

REPO = Path(__file__).resolve().parents[2]
PRINT = 'from sd_pretrain.cli import read_config; read_config("configs/sd_r18_imagenet.py").pretty_text'


@pytest.fixture
def yapf_cache(tmp_path, monkeypatch):
    """Files of a cache of this test's own, whole."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('PYTHONPATH', str(REPO), prepend=os.pathsep)
    subprocess.run([sys.executable, '-c', 'import yapf'], check=True)
    files = list(tmp_path.glob('YAPF/**/*.pickle'))
    assert files
    return files


def start():
    return subprocess.Popen([sys.executable, '-c', PRINT], cwd=REPO, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize('there', [0, 0.5])
def test_half_a_cache_is_waited_for(yapf_cache, there):
    whole = {path: path.read_bytes() for path in yapf_cache}
    for path, content in whole.items():
        path.write_bytes(content[: int(there * len(content))])
    reader = start()
    time.sleep(3)
    for path, content in whole.items():
        path.write_bytes(content)
    assert reader.wait(60) == 0, reader.stderr.read()


def test_a_cache_that_stays_damaged_is_named(yapf_cache):
    for path in yapf_cache:
        path.write_bytes(b'')
    reader = start()
    assert reader.wait(60) == 1
    assert f'InputError: the cache of yapf in {yapf_cache[0].parents[1]}' in reader.stderr.read()


def test_a_text_is_formatted_once(monkeypatch):
    cfg = read_config(REPO / 'configs' / 'sd_r18_imagenet.py')
    style = yapf_api.style
    styles = []
    monkeypatch.setattr(
        style, 'SetGlobalStyle', lambda new, old=style.SetGlobalStyle: styles.append(old(new))
    )
    cfg.work_dir = 'first'
    texts = [cfg.pretty_text, cfg.pretty_text]
    assert len(styles) == 1
    cfg.work_dir = 'second'
    assert cfg.pretty_text == texts[0].replace('first', 'second') and texts[0] == texts[1]
    assert len(styles) == 2


def test_what_else_formats_with_yapf_can(tmp_path):
    read_config(REPO / 'configs' / 'sd_r18_imagenet.py')
    (tmp_path / 'a.py').write_text('a  = 1\n')
    assert yapf_api.FormatFile(str(tmp_path / 'a.py'))[0] == 'a = 1\n'


@pytest.mark.parametrize(
    'given, value',
    [
        ('/my disk/a.pth', '/my disk/a.pth'),
        ('"/my disk, 2/a.pth"', '/my disk, 2/a.pth'),
        (' 3', 3),
        ('"[1, 2]"', [1, 2]),
        ('(1, a)', (1, 'a')),
        ('1, 2', [1, 2]),
        ("'a', 'b'", ['a', 'b']),
    ],
)
def test_a_path_among_options_keeps_its_spaces_and_commas(given, value):
    assert parse_options([f'key={given}']) == {'key': value}
