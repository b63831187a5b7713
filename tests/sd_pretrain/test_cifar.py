"""CIFAR-100: its files, the resident batches, and runs on a tiny set in its layout."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_common import write_cifar
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from torchvision.transforms import functional as F

from sd_pretrain import cifar_files
from sd_pretrain.cifar import Cifar100, CropFlipBatchSampler
from sd_pretrain.cifar_files import check_cifar100, ensure_cifar100, read_split
from sd_pretrain.cli import InputError
from sd_pretrain.prepare import load_config, mini_generations
from sd_pretrain.subset import first_of_each_class

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'cifar100'
NETS = ('resnet20', 'resnet32', 'resnet56', 'resnet110', 'densenet100', 'densenet190')
TEMPERATURES = {'bl': None, 'se': None, 'sd_t2': 2, 'sd_t3': 3}
SHORT = [
    'model.num_classes=4',
    'total_batch_size=8',
    'custom_hooks.0.ends=[1,2]',
    'train_cfg.max_epochs=2',
    'param_scheduler.0.periods=[1,1]',
    'param_scheduler.0.restart_weights=[1,1]',
    'default_hooks.logger.interval=1',
]


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    """A folder cifar-100-python of 4 classes, 20 + 8 images; not to be changed."""
    return write_cifar(tmp_path_factory.mktemp('cifar'))


def batches(cifar, seed=0, epoch=0, batch_size=8, padding=4):
    dataset = Cifar100(cifar, padding=padding, device='cpu')
    sampler = CropFlipBatchSampler(DefaultSampler(dataset, seed=seed), batch_size)
    sampler.sampler.set_epoch(epoch)
    return dataset, sampler


def test_split_is_read_as_written(cifar):
    images, labels = read_split(cifar, 'train')
    raw = pickle.loads((cifar / 'train').read_bytes())
    assert images.shape == (20, 32, 32, 3)
    assert images[3, 5, 7].tolist() == [raw['data'][3][plane * 1024 + 5 * 32 + 7] for plane in range(3)]
    assert labels.tolist() == raw['fine_labels']
    assert check_cifar100(cifar) == {'classes': 4, 'train': 20, 'val': 8}
    with pytest.raises(InputError, match='classes: 4 of 100; train: 20 of 50,000'):
        check_cifar100(cifar, full_size=True)


class Code:
    """Unpickling this runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('train', None, 'no .*train'),
        ('train', b'\x80\x02}q', 'train is damaged'),
        ('test', pickle.dumps([1]), 'holds a list'),
        ('test', pickle.dumps({'data': np.zeros((2, 10), np.uint8)}), "no 'data' of 3072"),
        ('test', pickle.dumps({'data': np.zeros((1, 3072), np.uint8), 'fine_labels': [4]}), 'of 0 to 3'),
        ('meta', pickle.dumps({}), "no 'fine_label_names'"),
    ],
)
def test_files_that_cannot_be_used(cifar, tmp_path, name, content, message):
    folder = shutil.copytree(cifar, tmp_path / 'copy')
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_cifar100(folder)


def test_pickles_with_code_do_not_run(cifar, tmp_path):
    folder = shutil.copytree(cifar, tmp_path / 'copy')
    (folder / 'train').write_bytes(pickle.dumps({'data': Code(tmp_path / 'ran')}))
    with pytest.raises(InputError, match='wants to call posix.system'):
        check_cifar100(folder)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('right', [True, False], ids=['right md5', 'wrong md5'])
def test_absent_data_is_downloaded_whole_or_not_at_all(cifar, tmp_path, monkeypatch, right):
    archive = tmp_path / 'served' / 'cifar-100-python.tar.gz'
    archive.parent.mkdir()
    with tarfile.open(archive, 'w:gz') as tar:
        tar.add(cifar, 'cifar-100-python')
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr('torchvision.datasets.CIFAR100.tgz_md5', md5 if right else md5[::-1])
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=archive.parent)
    )
    monkeypatch.setattr(cifar_files, 'URL', f'http://127.0.0.1:{server.server_port}/{archive.name}')
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = tmp_path / 'data' / 'cifar-100-python'
    try:
        if right:
            assert ensure_cifar100(root) == check_cifar100(cifar)
        else:
            with pytest.raises(InputError, match='cannot be downloaded'):
                ensure_cifar100(root)
    finally:
        server.shutdown()
        server.server_close()
    assert list(root.parent.iterdir()) == ([root] if right else [])


def test_absent_data_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_files, 'URL', 'http://127.0.0.1:9/cifar-100-python.tar.gz')
    with pytest.raises(InputError, match='cannot be downloaded'):
        ensure_cifar100(tmp_path / 'cifar-100-python')
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match='no data root'):
        ensure_cifar100(tmp_path / 'other_name')


def test_batches_are_the_crops_of_torchvision(cifar):
    """Every pixel of every image, against torchvision's pad, crop and hflip with the same draws."""
    dataset, sampler = batches(cifar)
    images, labels = read_split(cifar, 'train')
    seen = []
    for plan in sampler:
        batch = dataset.__getitems__(plan)
        for (image, top, left, mirror), found in zip(plan.tolist(), batch['inputs'], strict=True):
            expected = F.crop(F.pad(torch.from_numpy(images[image]).permute(2, 0, 1), [4]), top, left, 32, 32)
            assert torch.equal(found, F.hflip(expected) if mirror else expected)
        assert batch['labels'].tolist() == labels[plan[:, 0]].tolist()
        seen.append(len(plan))
    assert seen == [8, 8, 4]
    assert len(sampler) == 3


def test_offsets_and_mirrors_are_uniform(cifar):
    """RandomCrop(32, 4) draws each of 9 x 9 corners, RandomHorizontalFlip one half: chi-square of all 162."""
    _, sampler = batches(cifar)
    plans = []
    for epoch in range(2000):
        sampler.sampler.set_epoch(epoch)
        plans.append(sampler.plan())
    _, top, left, mirror = torch.cat(plans).unbind(1)
    counts = torch.bincount((top * 9 + left) * 2 + mirror, minlength=162).double()
    assert len(counts) == 162
    expected = len(top) / 162
    # 161 degrees of freedom: mean 161, standard deviation 18.
    assert ((counts - expected) ** 2 / expected).sum() < 161 + 4 * 18


def test_plan_is_a_function_of_seed_epoch_and_rank(cifar, monkeypatch):
    plan = batches(cifar, seed=1, epoch=2)[1].plan()
    torch.rand(3)
    assert torch.equal(plan, batches(cifar, seed=1, epoch=2)[1].plan())
    assert sorted(plan[:, 0].tolist()) == list(range(20))
    # mmengine's order is that of seed + epoch; the crops must not be.
    assert not torch.equal(plan[:, 1:], batches(cifar, seed=2, epoch=1)[1].plan()[:, 1:])
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
        _, sampler = batches(cifar, seed=1, epoch=2, batch_size=4)
        assert len(sampler) == 3
        shares.append(sampler.plan())
    assert torch.stack(shares, 1).flatten(0, 1)[:, 0].tolist() == plan[:, 0].tolist()
    assert not torch.equal(shares[0][:, 1:], shares[1][:, 1:])


def test_last_batch_can_be_dropped(cifar):
    _, sampler = batches(cifar)
    dropping = CropFlipBatchSampler(sampler.sampler, 8, drop_last=True)
    assert [len(plan) for plan in dropping] == [8, 8]
    assert len(dropping) == 2


def test_without_a_plan_images_are_whole(cifar):
    images = torch.from_numpy(read_split(cifar, 'val')[0]).permute(0, 3, 1, 2)
    for padding in (0, 4):
        dataset = Cifar100(cifar, 'val', padding=padding, device='cpu')
        assert torch.equal(dataset.__getitems__([5, 2])['inputs'], images[[5, 2]])
        assert torch.equal(dataset[3]['inputs'], images[3])


def test_subset_takes_the_first_of_each_class(cifar):
    assert first_of_each_class(np.array([0, 0, 0, 1, 1, 2, 0]), 5).tolist() == [0, 1, 3, 4, 5]
    assert Cifar100(cifar, subset=6, device='cpu').labels.bincount().tolist() == [2, 2, 1, 1]
    with pytest.raises(InputError, match='subset=21 of the 20 train images'):
        Cifar100(cifar, subset=21)


@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('algorithm', TEMPERATURES)
def test_recipe_of_section_4_1(net, algorithm):
    name, _, suffix = algorithm.partition('_')
    cfg = load_config(CONFIGS / f'{name}_{net}{"_" + suffix if suffix else ""}.py', data_root='/sets')
    epochs, batch = (164, 128) if net.startswith('resnet') else (300, 64)
    quarters = [epochs // 4 * k for k in (1, 2, 3, 4)]
    hook = mini_generations(cfg)
    assert hook.ends == ([epochs] if name == 'bl' else quarters)
    assert np.cumsum(cfg.param_scheduler[0].periods).tolist() == hook.ends
    assert (hook.distill, hook.get('temperature')) == (name == 'sd', TEMPERATURES[algorithm])
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.total_batch_size == batch
    sgd = dict(type='FusedSGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    assert dict(cfg.optim_wrapper.optimizer) == sgd
    assert (cfg.model.network, cfg.model.num_classes) == (f'cifar_{net}', 100)
    assert cfg.train_dataloader.dataset.data_root == '/sets/cifar-100-python'
    assert (cfg.train_dataloader.dataset.padding, cfg.val_dataloader.dataset.get('padding', 0)) == (4, 0)


def test_algorithms_of_one_seed_start_from_the_same_weights(tmp_path):
    def start(config, seed):
        cfg = load_config(CONFIGS / config, work_dir=tmp_path)
        cfg = Config({key: cfg[key] for key in ('model', 'data_preprocessor', 'work_dir', 'default_scope')})
        cfg.update(randomness=dict(seed=seed), experiment_name=f'{config}{seed}', log_level='ERROR')
        return Runner.from_cfg(cfg).model.state_dict()

    first, second, third = (
        start('bl_resnet20.py', 3),
        start('sd_resnet20_t2.py', 3),
        start('se_resnet20.py', 4),
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first['network.fc.weight'], third['network.fc.weight'])


def train(run_tool, cifar, work_dir, *arguments):
    config = CONFIGS / 'sd_resnet20_t2.py'
    places = ['--work-dir', work_dir, '--data-root', cifar.parent]
    assert run_tool('train.py', config, *places, *arguments, '--cfg-options', *SHORT) == 0
    return torch.load(work_dir / 'epoch_2.pth', weights_only=False)['state_dict']


def test_run_and_resume_see_the_same_batches(run_tool, cifar, tmp_path):
    """A taught run of two epochs, unbroken and resumed after the first, ends in the same weights."""
    whole = train(run_tool, cifar, tmp_path / 'whole')
    rows = next(tmp_path.glob('whole/*/vis_data/scalars.json')).read_text().splitlines()
    taught = ['loss_kl' in row for row in map(json.loads, rows) if 'loss' in row]
    assert taught == [False] * 3 + [True] * 3
    assert json.loads((tmp_path / 'whole/result.json').read_text())['checkpoint'] == 'snapshot_2.pth'
    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'whole/epoch_1.pth', tmp_path / 'resumed')
    resumed = train(run_tool, cifar, tmp_path / 'resumed', '--resume', tmp_path / 'resumed/epoch_1.pth')
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_mistakes_before_the_run(run_tool, cifar, tmp_path, capsys):
    config = CONFIGS / 'bl_resnet20.py'
    places = ['--work-dir', tmp_path, '--data-root', cifar.parent]
    assert run_tool('train.py', config, *places) == 2
    assert 'has 4 classes, the config has model.num_classes=100' in capsys.readouterr().err
    options = ['--cfg-options', 'model.num_classes=4', 'train_dataloader.dataset.subset=10']
    assert run_tool('train.py', config, *places, *options) == 2
    assert '10 training images are less than one batch of 128' in capsys.readouterr().err


def test_the_real_set(tmp_path):
    """Unpacks all 60,000 images: the one test that does."""
    source = Path(os.environ.get('SD_REAL_DATA', '.'))
    if not (source / 'cifar100.zip').is_file():
        pytest.skip(f'real data: no {source / "cifar100.zip"} (SD_REAL_DATA can name another folder)')
    subprocess.run(
        [sys.executable, source / 'unpack.py', tmp_path, 'cifar100'], check=True, capture_output=True
    )
    root = tmp_path / 'cifar-100-python'
    assert check_cifar100(root, full_size=True)['train'] == 50_000
    cfg = load_config(CONFIGS / 'bl_resnet20.py')
    pixels = Cifar100(root, device='cpu').images.float()
    assert pixels.mean((0, 1, 2)).tolist() == pytest.approx(cfg.data_preprocessor.mean, abs=0.01)
    assert pixels.std((0, 1, 2)).tolist() == pytest.approx(cfg.data_preprocessor.std, abs=0.01)
