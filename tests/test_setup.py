"""The set-up without a network: pins, doctor, and the scripts with an interpreter that records its calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / 'tools'))
import doctor  # noqa: E402
import pins  # noqa: E402

WANTED = [
    Requirement(line) for line in ('torch>=2.6', 'torchvision>=0.21', 'onedl-mmcv>=2.3.4,<2.4', 'numpy<3')
]
PINNED = [
    Requirement(line)
    for line in ('torch==2.11.0', 'torchvision==0.26.0', 'onedl-mmcv==2.3.6', 'numpy==2.2.6', 'click==8.5.1')
]


def test_every_requirement_has_one_pin_in_its_range_on_each_python():
    lines = [line.split('#')[0].strip() for line in (ROOT / 'constraints.txt').read_text().splitlines()]
    for python in ('3.10', '3.11', '3.12'):
        applying = {}
        for pin in map(Requirement, filter(None, lines)):
            if pin.marker is None or pin.marker.evaluate({'python_version': python}):
                assert pin.name not in applying, f'{pin.name} is pinned twice on {python}'
                applying[pin.name] = next(iter(pin.specifier)).version
        assert pins.unmet(pins.requirements(), applying.get) == []


def test_an_environment_keeps_its_own_torch_and_compiled_mmcv():
    there = {'torch': '2.9.1+cu126', 'torchvision': '0.24.1+cu126', 'onedl-mmcv': '2.3.5', 'click': '8.1.0'}
    # numpy is missing, so it alone is pinned; torch is nailed to the build that is there.
    assert pins.keep_what_suits(WANTED, PINNED, there.get) == ['torch==2.9.1+cu126', 'numpy==2.2.6']


def test_a_torch_that_stays_chooses_its_torchvision():
    assert pins.keep_what_suits(WANTED, PINNED, {'torch': '2.9.1'}.get) == [
        'torch==2.9.1',
        'onedl-mmcv==2.3.6',
        'numpy==2.2.6',
        'click==8.5.1',
    ]
    assert 'torchvision==0.26.0' in pins.keep_what_suits(WANTED, PINNED, {'torch': '2.11.0+cpu'}.get)


def test_what_does_not_suit_gets_its_pin():
    there = {
        'torch': '2.4.0',
        'torchvision': '0.19.0',
        'onedl-mmcv': '2.4.1',
        'numpy': '3.0.0',
        'click': '1.0',
    }
    assert pins.keep_what_suits(WANTED, PINNED, there.get) == [str(pin) for pin in PINNED[:4]]


def test_doctor_is_content_here():
    done = run([sys.executable, 'tools/doctor.py'], ROOT, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == 'All is well.'
    for what in ('Python', 'torch', 'CUDA', 'mmcv ops', 'onedl-mmdetection', 'disk', 'import mmseg'):
        assert any(what in line for line in lines)


def test_doctor_says_what_is_wrong_and_what_to_do(capsys):
    there = {wanted.name: pins.installed(wanted.name) for wanted in pins.requirements()}
    there |= {'torch': '2.4.0', 'timm': None, 'mmcv': '2.1.0'}
    findings = [
        doctor.check_python((3, 9, 2)),
        *doctor.check_packages(there.get),
        doctor.check_disk(2 * 10**8),
    ]
    assert doctor.report(findings) == 1
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert lines['Python'].startswith('FAIL') and '3.10, 3.11 or 3.12' in lines['Python']
    assert lines['torch'].startswith('FAIL') and '2.4.0 -> needs torch>=2.6' in lines['torch']
    assert lines['timm'].startswith('FAIL') and 'not installed' in lines['timm']
    assert lines['mmcv'].startswith('FAIL') and 'uninstall' in lines['mmcv']
    assert lines['numpy'].startswith('OK')
    assert lines['disk'].startswith('FAIL')


def test_doctor_reports_a_module_that_does_not_import(tmp_path, monkeypatch):
    (tmp_path / 'broken_cv2.py').write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.check_import('broken_cv2', 'install the headless one')
    assert finding[0] == 'FAIL' and 'libGL.so.1' in finding.found and finding.advice


def run(command, cwd, **env):
    keep = {key: os.environ[key] for key in ('PATH', 'HOME', 'LANG', 'TMPDIR') if key in os.environ}
    return subprocess.run(command, cwd=cwd, env=keep | env, capture_output=True, text=True)


# Records each call; answers for pip, venv, the doctor and the checks; the rest goes to the real interpreter.
STAND_IN = """#!/bin/bash
echo "$*" >> '{log}'
case "$*" in
  '-m venv --clear '*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && exit ;;
  '-m pip install'*' -c '*) while [ "$1" != -c ]; do shift; done; cp "$2" '{constraints}'; exit ;;
  '-m pip'*) exit ;;
  '-m ruff'*) exit {ruff} ;;
  '-m pytest -m cuda') exit 5 ;;
  '-m pytest -n '*) exit {tests} ;;
  '-c import sys, torch;'*) exit {no_gpu} ;;
  tools/doctor.py) echo examined; exit {doctor} ;;
  'tools/pins.py check') exit {check} ;;
  'tools/pins.py headless') exit ;;
esac
exec '{python}' "$@"
"""


class Clone:
    """The set-up's files in a folder of their own, and environments whose interpreter is the stand-in."""

    def __init__(self, folder):
        self.root = folder / 'clone'
        shutil.copytree(ROOT / 'tools', self.root / 'tools', ignore=shutil.ignore_patterns('__pycache__'))
        for name in ('pyproject.toml', 'constraints.txt'):
            shutil.copy(ROOT / name, self.root)
        self.log = folder / 'calls'
        self.constraints = folder / 'constraints'

    def stand_in(self, path, check=1, doctor=0, **codes):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = STAND_IN.format(
            log=self.log,
            constraints=self.constraints,
            python=sys.executable,
            check=check,
            doctor=doctor,
            **{'ruff': 0, 'tests': 0, 'no_gpu': 1, **codes},
        )
        path.write_text(text)
        path.chmod(0o755)
        return path

    def environment(self, name, stamped=False, **answers):
        prefix = self.root.parent / name if name != '.venv' else self.root / name
        self.stand_in(prefix / 'bin' / 'python', **answers)
        if stamped:
            done = run(['bash', '-c', 'source tools/find_env.sh; sd_stamp'], self.root)
            (prefix / '.sd_setup').write_text(done.stdout)
        return prefix

    def setup(self, *args, **env):
        self.log.unlink(missing_ok=True)
        return run(['bash', 'tools/setup.sh', *args], self.root, **env)

    def pick(self, cwd=None, **env):
        script = f'source {self.root}/tools/env.sh; echo "$PWD|$PYTHON|$PYTHONPATH"'
        return run(['bash', '-c', script], cwd or self.root, **env)

    def calls(self, start=''):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(start)]


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_setup_makes_venv_installs_the_pins_and_is_quick_the_second_time(clone):
    python = str(clone.stand_in(clone.root.parent / 'python3.11'))
    done = clone.setup('--extra-index-url', 'https://example.org/cpu', PYTHON=python)
    assert done.returncode == 0, done.stderr
    install = next(call for call in clone.calls('-m pip install') if ' -c ' in call)
    assert install.endswith('-e .[demo,test] --extra-index-url https://example.org/cpu')
    assert clone.constraints.read_text() == (ROOT / 'constraints.txt').read_text()
    assert clone.calls()[-1] == 'tools/doctor.py'

    again = clone.setup()
    assert again.returncode == 0, again.stderr
    assert 'examined' in again.stdout
    assert clone.calls('-m') == []

    (clone.root / 'constraints.txt').open('a').write('tqdm==4.70.1\n')
    assert clone.setup().returncode == 0
    assert clone.calls('-m pip install')


def test_setup_in_an_active_environment_keeps_what_suits(clone):
    active = clone.environment('active')
    done = clone.setup(VIRTUAL_ENV=str(active))
    assert done.returncode == 0, done.stderr
    assert not (clone.root / '.venv').exists()
    # This very interpreter has the whole stack: its torch is kept, nothing else of it is pinned.
    constraints = clone.constraints.read_text().split()
    assert f'torch=={pins.installed("torch")}' in constraints
    assert not any(line.startswith(('torchvision', 'onedl', 'numpy')) for line in constraints)


@pytest.mark.parametrize('tool', ['env', 'setup'])
def test_an_exported_cdpath_leads_nowhere_else(clone, tool):
    """Bash would go to a folder of the same name there, and print where."""
    clone.environment('.venv', stamped=True)
    (clone.root.parent / 'home' / 'tools').mkdir(parents=True)
    script = f'source tools/{tool}.sh; echo "$PWD"'
    done = run(['bash', '-c', script], clone.root, CDPATH=str(clone.root.parent / 'home'))
    assert done.returncode == 0, done.stderr
    assert str(clone.root.parent / 'home') not in done.stdout + done.stderr


def test_setup_repairs_what_the_doctor_does_not_like(clone):
    clone.environment('.venv', stamped=True, doctor=1)
    done = clone.setup()
    assert done.returncode == 1
    assert clone.calls('-m pip install')
    assert not (clone.root / '.venv' / '.sd_setup').exists()


def test_setup_names_the_debian_package_when_there_is_no_venv_module(clone):
    python = clone.stand_in(clone.root.parent / 'python3')
    python.write_text(python.read_text().replace('case "$*" in', 'case "$*" in\n  *ensurepip*) exit 1 ;;'))
    done = clone.setup(PYTHON=str(python))
    version = f'{sys.version_info[0]}.{sys.version_info[1]}'
    assert done.returncode == 2
    assert f'apt install python{version}-venv' in done.stderr
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('where', ['PYTHON', 'VIRTUAL_ENV'])
def test_setup_refuses_a_python_that_is_too_old(clone, where):
    old = clone.root.parent / 'old' / 'bin' / 'python'
    old.parent.mkdir(parents=True)
    old.write_text('#!/bin/bash\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    done = clone.setup(**{where: str(old if where == 'PYTHON' else old.parent.parent)})
    assert done.returncode == 2
    assert 'Python 3.9.2' in done.stderr and '3.10, 3.11 and 3.12' in done.stderr
    assert not (clone.root / '.venv').exists()


def test_env_takes_the_active_environment_if_it_has_all_else_venv(clone):
    venv = clone.environment('.venv', stamped=True)
    poor, rich = clone.environment('poor', check=1), clone.environment('rich', check=0)
    elsewhere = clone.root.parent
    root, python, path = clone.pick(elsewhere, VIRTUAL_ENV=str(rich)).stdout.strip().split('|')
    assert (root, python, path) == (str(clone.root), f'{rich}/bin/python', str(clone.root))
    assert f'|{venv}/bin/python|' in clone.pick(VIRTUAL_ENV=str(poor)).stdout
    assert f'|{venv}/bin/python|' in clone.pick().stdout
    assert f'|{venv}/bin/python|' in clone.pick(VIRTUAL_ENV=str(rich), SD_ENV='.venv').stdout
    assert f'|{rich}/bin/python|' in clone.pick(CONDA_PREFIX=str(rich), CONDA_DEFAULT_ENV='work').stdout
    assert f'|{venv}/bin/python|' in clone.pick(CONDA_PREFIX=str(rich), CONDA_DEFAULT_ENV='base').stdout
    assert clone.calls('-m pip') == []


def test_env_sets_up_where_there_is_nothing_and_leaves_stdout_alone(clone):
    python = str(clone.stand_in(clone.root.parent / 'python3.11'))
    done = clone.pick(PYTHON=python)
    assert done.stdout.strip() == f'{clone.root}|{clone.root}/.venv/bin/python|{clone.root}'
    assert 'examined' in done.stderr
    assert clone.calls('-m pip install')


def test_env_stops_the_launcher_when_the_set_up_fails(clone):
    done = clone.pick(PYTHON='/no/such/python')
    assert done.returncode == 2
    assert done.stdout == ''
    assert 'error: PYTHON=/no/such/python is not there' in done.stderr


RUFF = ['-m ruff check .', '-m ruff format --check .']
PYTEST = '-m pytest -n auto --maxprocesses 2 --dist worksteal'


@pytest.mark.parametrize(
    ('codes', 'expected', 'calls'),
    [
        ({}, 0, [*RUFF, PYTEST]),
        ({'ruff': 1}, 1, RUFF[:1]),
        ({'tests': 1, 'no_gpu': 0}, 1, [*RUFF, PYTEST]),
        # Of the tests asked for none may need a GPU, which pytest calls 5.
        ({'no_gpu': 0}, 0, [*RUFF, PYTEST, '-m pytest -m cuda']),
    ],
    ids=['', 'lint', 'failure', 'gpu'],
)
def test_ci_runs_ruff_then_pytest_and_with_a_gpu_the_tests_for_it(clone, codes, expected, calls):
    clone.environment('.venv', stamped=True, **codes)
    shutil.copytree(ROOT / '.ci', clone.root / '.ci')
    done = run([str(clone.root / '.ci' / 'run')], clone.root.parent)
    assert done.returncode == expected, done.stderr
    assert [one for one in clone.calls() if not one.startswith('-c ')] == calls
