from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

TINY = """
_base_ = '{root}/configs/demo/sd_r18_demo.py'
default_data_root = None
total_batch_size = 8
model = dict(network='test_resnet', num_classes=4)
data_preprocessor = dict(rotation=5, jitter=0.1)
train_dataloader = dict(num_workers=0, dataset=dict(size=32))
val_dataloader = dict(num_workers=0, batch_size=3, dataset=dict(size=32, resize=36))
test_dataloader = val_dataloader
param_scheduler = [
    dict(
        type='CosineRestartLR',
        periods=[2, 1],
        restart_weights=[1, 1],
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
custom_hooks = [dict(type='SnapshotDistillationHook', ends=[2, 3], distill=True, temperature=2.0)]
train_cfg = dict(max_epochs=3)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1))
"""
# Dropout draws from the process's generator, rotation and jitter from the preprocessor's, crops from the
# dataset's: all three kinds of randomness are there.
FOUR_EPOCHS = """
_base_ = '{base}'
total_batch_size = 12
model = dict(network_args=dict(drop_rate=0.2))
param_scheduler = [dict(type='CosineRestartLR', periods={periods}, restart_weights={weights}, eta_min=0,
                        by_epoch=True, convert_to_iter_based=True)]
custom_hooks = [dict(type='SnapshotDistillationHook', ends={ends}, distill={distill}{loss})]
train_cfg = dict(max_epochs=4)
"""
ALGORITHMS = {
    'bl': dict(ends=[4], periods=[4], weights=[1], distill=False, loss=''),
    'se': dict(ends=[2, 4], periods=[2, 2], weights=[1, 1], distill=False, loss=''),
    'sd': dict(ends=[2, 4], periods=[2, 2], weights=[1, 1], distill=True, loss=', temperature=2.0'),
    # Taught out of a file, after the first epoch.
    'file': dict(
        ends=[4], periods=[4], weights=[1], distill=True, loss=', temperature=2.0, teacher={teacher}'
    ),
}


def make_image_folder(root, classes=4, train=6, val=2, size=40):
    """Classification folders whose classes differ in colour."""
    rng = np.random.default_rng(0)
    for split, count in (('train', train), ('val', val)):
        for index in range(classes):
            folder = root / 'ILSVRC2012' / split / f'n{index:08d}'
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 80, (size, size + 6, 3))
                pixels[..., index % 3] += 40 * (index + 1)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f'{number}.JPEG')
    return root


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
    """A data root with 4 classes, 24 training and 8 validation images."""
    return make_image_folder(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='session')
def tiny_config(tmp_path_factory):
    """An SD config of three epochs, two mini-generations (2 + 1), nine iterations."""
    path = tmp_path_factory.mktemp('config') / 'sd_tiny.py'
    path.write_text(TINY.format(root=ROOT))
    return path


@pytest.fixture(scope='session')
def four_epochs(tiny_config, tmp_path_factory):
    """Configs of BL, SE, SD and a teacher out of a file: four epochs of two iterations."""
    folder = tmp_path_factory.mktemp('exact')
    torch.manual_seed(7)
    teacher = timm.create_model('test_resnet', num_classes=4).state_dict()
    weights = {f'network.{key}': value for key, value in teacher.items()}
    torch.save({'meta': {'arch': 'test_resnet'}, 'state_dict': weights}, folder / 'teacher.pth')
    spec = str({'checkpoint': str(folder / 'teacher.pth'), 'from_epoch': 1})
    for name, settings in ALGORITHMS.items():
        settings = settings | {'loss': settings['loss'].format(teacher=spec)}
        (folder / f'{name}.py').write_text(FOUR_EPOCHS.format(base=tiny_config, **settings))
    return {name: folder / f'{name}.py' for name in ALGORITHMS}


@pytest.fixture(scope='session')
def four_epoch_run(run_tool, four_epochs, image_folder, tmp_path_factory):
    """``four_epoch_run(algorithm, *arguments)`` gives the work dir; equal runs are made once."""
    done = {}

    def train(algorithm, *arguments):
        key = (algorithm, *arguments)
        if key not in done:
            done[key] = work_dir = tmp_path_factory.mktemp(algorithm)
            places = ['--work-dir', work_dir, '--data-root', image_folder]
            assert run_tool('train.py', four_epochs[algorithm], *arguments, *places) == 0
        return done[key]

    return train


@pytest.fixture(scope='session')
def jobs_here(run_tool):
    """``with jobs_here() as started:`` runs the pretrainings of a table in this process, one after the other.

    What is run is the job's own command line; ``started`` are the names of the jobs.
    """

    @contextmanager
    def run():
        started = []

        def run_jobs(title, jobs, places):
            for job in jobs:
                started.append(job.name)
                if run_tool(Path(job.argv[1]).name, *job.argv[2:]):
                    raise RuntimeError(f'{job.name} failed')

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('sd_pretrain.pretrainings.run_jobs', run_jobs)
            yield started

    return run


@pytest.fixture
def refused(run_tool, tiny_config, image_folder, tmp_path, capfd):
    """Run a tool that must refuse; gives the one line that it says."""

    def run(*arguments, tool='train.py', work_dir=tmp_path / 'new', data_root=image_folder):
        capfd.readouterr()
        places = ['--work-dir', work_dir, '--data-root', data_root]
        assert run_tool(tool, *(arguments or [tiny_config]), *places) == 2
        errors = capfd.readouterr().err
        assert 'Traceback' not in errors
        lines = [line for line in errors.splitlines() if line.startswith('error: ')]
        assert len(lines) == 1
        return lines[0]

    return run
