"""A probe run: features that are the backbone's, computed once; results, predictions and verdicts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from probe_common import TINY
from torchvision.models import resnet18
from torchvision.transforms import v2

from sd_pretrain.cli import InputError, set_data_root
from transfer import features, finetune, probe, runner
from transfer.backbone import read_backbone
from transfer.evidence import compare, compare_classes
from transfer.features import build_backbone, extract, kept
from transfer.labelled_images import read_labels
from transfer.predictions import load_predictions
from transfer.ranking import resampled_scores
from transfer.results import collect
from transfer.run_record import load_config
from transfer.table import format_table
from transfer.voc import CLASSES

REPO = Path(__file__).resolve().parents[2]
CONFIG = str(REPO / 'configs/demo/svm-knn_r18-frozen_demo-voc07.py')
VOC07 = 'VOCdevkit/VOC2007'


@pytest.fixture(scope='module')
def data_root(tmp_path_factory, write_tiny_voc):
    """20 + 20 images: two to fit on and two to test on for each class."""
    return write_tiny_voc(tmp_path_factory.mktemp('voc') / 'data', train=20, test=20)


@pytest.fixture(scope='module')
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp('backbones')
    for seed, name in enumerate(('A', 'B')):
        torch.manual_seed(seed)
        network = resnet18()
        network.layer4[1].bn2.running_mean += 0.01 * (seed + 1)
        torch.save({'state_dict': network.state_dict()}, folder / f'{name}.pth')
    return {name: folder / f'{name}.pth' for name in ('A', 'B')} | {'none': 'none'}


def run(backbone, work_dir, data_root, *more, options=TINY):
    paths = ['--backbone', str(backbone), '--work-dir', str(work_dir), '--data-root', str(data_root)]
    return probe.probe(finetune.parse_args([CONFIG, *paths, *more, '--cfg-options', *options]))


@pytest.fixture(scope='module')
def done(backbones, data_root, tmp_path_factory):
    """Two seeds of each backbone."""
    root = tmp_path_factory.mktemp('done')
    for name, path in backbones.items():
        for seed in (0, 1):
            run(path, root / 'probe_voc07' / name / f'seed{seed}', data_root, '--seed', str(seed))
    return root


def tiny_config(data_root):
    cfg = load_config(CONFIG)
    cfg.merge_from_dict({'view.resize': 48, 'view.crop': 40, 'knn.k': 5, 'low_shot.shots': [1, 2]})
    set_data_root(cfg, data_root)
    return cfg


def test_features_are_those_of_the_backbone_file(backbones, data_root):
    cfg = tiny_config(data_root)
    network, equal = build_backbone(cfg, read_backbone(backbones['A']), seed=0)
    assert equal == 120
    found = extract(cfg, network, say=print)
    assert found['train_features'].shape == (20, 512) and found['val_features'].shape == (20, 512)
    assert np.linalg.norm(found['val_features'], axis=1) == pytest.approx(1)

    whole = resnet18()
    whole.load_state_dict(torch.load(backbones['A'], weights_only=True)['state_dict'])
    whole.fc = torch.nn.Identity()
    view = v2.Compose([
        *[v2.Resize(48), v2.CenterCrop(40), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)],
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    names = found['val_names'].tolist()
    image = Image.open(data_root / VOC07 / f'JPEGImages/{names[3]}.jpg').convert('RGB')
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(whole.eval()(view(image)[None]))[0]
    assert found['val_features'][3] == pytest.approx(wanted.numpy(), abs=1e-5)


def test_a_file_that_does_not_fill_the_network_is_found_out(backbones, data_root):
    cfg, file = tiny_config(data_root), read_backbone(backbones['A'])
    file.tensors.pop('layer3.1.conv2.weight')
    with pytest.raises(RuntimeError, match=r'1 not in the file \(backbone.layer3.1.conv2.weight\)'):
        build_backbone(cfg, file, seed=0)


def test_labels_leave_open_what_is_only_difficult(data_root, tmp_path):
    root = shutil.copytree(data_root / VOC07, tmp_path / 'VOC2007')
    path = root / 'Annotations/000001.xml'
    text = path.read_text()  # an aeroplane and a bicycle
    assert read_labels(root, ['000001'])[0].tolist() == [1, 1, *[-1] * 18]
    path.write_text(text.replace('<difficult>0', '<difficult>1', 1))
    assert read_labels(root, ['000001'])[0].tolist() == [0, 1, *[-1] * 18]
    # A second one that is not difficult decides.
    again = text[text.index('<object>') : text.index('</object>') + len('</object>')]
    path.write_text(path.read_text().replace('</annotation>', f'{again}</annotation>'))
    assert read_labels(root, ['000001'])[0].tolist() == [1, 1, *[-1] * 18]


def test_results_and_stored_scores_agree(done, data_root):
    work_dir = done / 'probe_voc07/A/seed0'
    result = json.loads((work_dir / 'result.json').read_text())
    assert list(result['metrics']) == ['mAP_linear', 'mAP_knn', 'mAP_low_shot']
    assert list(result['per_class']) == list(CLASSES)
    assert np.mean(list(result['per_class'].values())) == pytest.approx(result['metrics']['mAP_linear'])
    assert np.mean(list(result['low_shot'].values())) == pytest.approx(result['metrics']['mAP_low_shot'])
    assert set(result['low_shot']) == {'1', '2'} and set(result['svm_costs'].values()) <= {1.0, 10.0}
    scores, images = load_predictions(work_dir, 'probe')
    assert list(images) == (data_root / VOC07 / 'ImageSets/Main/test.txt').read_text().split()
    once = np.ones((1, len(images)), np.float32)
    again = [np.nanmean(resampled_scores(scores, once, kind)) for kind in ('linear', 'knn', 'low_shot')]
    assert again == pytest.approx(list(result['metrics'].values()), abs=1e-6)
    assert 'backbone: 120 of 120 tensors equal' in (work_dir / 'probe.log').read_text()


def test_a_seed_changes_what_it_draws_and_features_are_computed_once(done):
    metrics = {
        (name, seed): json.loads((done / f'probe_voc07/{name}/seed{seed}/result.json').read_text())['metrics']
        for name in ('A', 'none')
        for seed in (0, 1)
    }
    for metric in ('mAP_linear', 'mAP_knn'):
        assert metrics['A', 0][metric] == metrics['A', 1][metric]
    assert metrics['A', 0]['mAP_low_shot'] != metrics['A', 1]['mAP_low_shot']
    assert metrics['none', 0]['mAP_linear'] != metrics['none', 1]['mAP_linear'], 'its weights are drawn, too'
    for name, files in (('A', 1), ('none', 2)):
        folder = done / 'probe_voc07' / name
        assert len(list(folder.glob('features-*.npz'))) == len(list(folder.glob('scores-*.npz'))) == files


def test_without_run_to_run_chance_the_interval_is_over_the_images(done):
    results = collect(done, first=('A', 'B', 'none'))
    found = {(one.name, one.metric): one for one in compare(results, resamples=200)}
    assert len(found) == 6
    linear = found['B', 'mAP_linear']
    assert linear.interval.error == 0 < linear.interval.image_error and linear.interval.reach > 0
    assert linear.verdict.text.endswith('over test images only; no chance from run to run')
    low_shot = found['B', 'mAP_low_shot']
    assert low_shot.interval.error > 0 and '2+2 runs' in low_shot.verdict.text
    assert found['none', 'mAP_linear'].interval.error > 0, 'random weights are drawn by the seed'

    single, *_ = compare([run for run in results if run['seed'] == 0][:2])
    assert single.metric == 'mAP_linear'
    assert single.verdict.text.endswith('no chance from run to run'), 'one run is enough to know'
    for one in results:
        one.pop('work_dir')
    unknown = {(one.name, one.metric): one for one in compare(results)}['B', 'mAP_knn']
    assert unknown.interval is None and 'the same in every run, and nothing known' in unknown.verdict.text


def test_the_table_has_no_zero_for_what_is_not_known(done):
    text = format_table(collect(done, first=('A', 'B', 'none')))
    (row,) = [line for line in text.splitlines() if line.startswith('B ')][:1]
    assert row.count('± -') == 2 and '± -: the same in every run' in text


def test_classes_are_compared_over_the_images(done):
    results = collect(done, first=('A', 'B'))
    found = compare_classes(results, 'B', 'A', 'probe', resamples=100)
    assert [one.name for one in found] == list(CLASSES) and all(one.interval.error == 0 for one in found)


def test_finished_runs_stay_and_other_runs_are_refused(done, backbones, data_root, monkeypatch):
    monkeypatch.setattr(probe, 'extract', None)
    work_dir = done / 'probe_voc07/A/seed0'
    assert run(backbones['A'], work_dir, data_root)['metrics']
    with pytest.raises(InputError, match='holds another run: config was'):
        run(backbones['A'], work_dir, data_root, options=[*TINY, 'knn.temperature=1.0'])
    # Only the neighbours differ: the features are those that are there.
    other = work_dir.with_name('seed2')
    assert run(backbones['A'], other, data_root, options=[*TINY, 'knn.temperature=1.0'])['seed'] == 0
    shutil.rmtree(other)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            [*TINY, 'low_shot.shots=[1,4]'],
            r'2 images show a \w+ and 4 are needed; take fewer, with --cfg-options low_shot\.shots=\[1\]$',
        ),
        (
            [*TINY, 'low_shot.shots=[1,2,4]', 'svm.folds=3', 'svm.costs=[1.0,2.0]'],
            r'and 4 are needed; take fewer, with --cfg-options low_shot\.shots=\[1,2\] svm\.folds=2$',
        ),
        ([*TINY, 'knn.k=50'], '20 images, fewer than 50 neighbours'),
        ([*TINY, 'task=det'], 'is no config of a probe'),
        ([*TINY, 'model.backbone.depth=50'], r'is a resnet18.* is for a resnet50'),
    ],
)
def test_what_cannot_be_probed_is_said_before_anything_is_computed(
    backbones, data_root, tmp_path, options, message, monkeypatch
):
    monkeypatch.setattr(probe, 'extract', None)
    with pytest.raises(InputError, match=message):
        run(backbones['A'], tmp_path / 'w', data_root, options=options)
    assert not (tmp_path / 'w').exists()


def test_too_few_images_are_said_before_any_run_starts(backbones, data_root, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, 'start', None)
    options = runner.Options(
        work_dir=tmp_path,
        config=CONFIG,
        data_root=str(data_root),
        cfg_options=(*TINY, 'low_shot.shots=[1,4]'),
    )
    with pytest.raises(InputError, match=r'2 images show a \w+ and 4 are needed'):
        runner.run_transfer('probe', 'voc07', {'A': str(backbones['A'])}, options)


def test_mixed_precision_and_other_ranks_have_nothing_to_do(backbones, data_root, tmp_path, monkeypatch):
    with pytest.raises(InputError, match='trains no network: run without --amp'):
        run(backbones['A'], tmp_path, data_root, '--amp')
    monkeypatch.setenv('RANK', '1')
    assert run(backbones['A'], tmp_path, data_root, '--launcher', 'pytorch') is None


def test_a_damaged_image_is_named(backbones, data_root, tmp_path):
    there = shutil.copytree(data_root, tmp_path / 'data')
    path = there / VOC07 / 'JPEGImages/000025.jpg'
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r'cannot read image .*000025\.jpg: .*unpack it again'):
        run(backbones['A'], tmp_path / 'w', there)
    with pytest.raises(InputError, match='holds a broken-off run; --resume goes on'):
        run(backbones['A'], tmp_path / 'w', data_root)
    assert run(backbones['A'], tmp_path / 'w', data_root, '--resume')['metrics']


def test_a_damaged_file_of_features_is_named(tmp_path):
    assert kept(tmp_path / 'f.npz', lambda: {'x': np.arange(3)})['x'].tolist() == [0, 1, 2]
    assert kept(tmp_path / 'f.npz', None)['x'].tolist() == [0, 1, 2]
    (tmp_path / 'f.npz').write_bytes(b'PK')
    with pytest.raises(InputError, match=r'f\.npz cannot be read .*delete it'):
        kept(tmp_path / 'f.npz', None)


@pytest.mark.cuda
def test_a_gpu_computes_the_same_features(backbones, data_root, monkeypatch):
    cfg = tiny_config(data_root)
    network, _ = build_backbone(cfg, read_backbone(backbones['A']), seed=0)
    on_gpu = extract(cfg, network, say=print)['val_features']
    monkeypatch.setattr(features, 'get_device', lambda: 'cpu')
    assert on_gpu == pytest.approx(extract(cfg, network, say=print)['val_features'], abs=1e-3)


def test_backbones_are_probed_through_the_tool(backbones, data_root, tmp_path):
    command = [
        *[sys.executable, 'tools/run_transfer.py', 'probe', 'voc07', '--demo', '--data-root', str(data_root)],
        *['--work-dir', str(tmp_path / 'w'), '--parallel', '2', f'A={backbones["A"]}', 'scratch=none'],
        *['--cfg-options', *TINY],
    ]
    environment = {
        'PYTHONPATH': str(REPO),
        'OMP_NUM_THREADS': '1',
        'PATH': '/usr/bin:/bin',
        'CUDA_VISIBLE_DEVICES': '',
    }
    found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPO)
    assert found.returncode == 0, found.stdout + found.stderr
    assert 'mAP linear' in found.stdout and 'scratch' in found.stdout
    assert {one['task'] for one in collect(tmp_path / 'w')} == {'probe'}


def test_the_depth_picks_the_config(data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    from torchvision.models import resnet50

    torch.save(resnet50().state_dict(), tmp_path / 'r50.pth')
    options = runner.Options(data_root=str(data_root))
    (planned,) = runner.plan(
        runner.find_task('probe', 'voc07'), {'R': str(tmp_path / 'r50.pth')}, tmp_path, options
    )
    assert planned.arguments[0] == 'configs/probe/svm-knn_r50-frozen_voc07.py'
    assert planned.module == 'transfer.probe'
