"""The table of data sets: an entry in it is all that the code needs to know of a new one."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision.models import resnet18

from sd_pretrain.cli import InputError
from transfer import check_data, contenders, finetune, runner
from transfer.bootstrap import Detections, resampled_ap
from transfer.checkpoint_io import sha256_of
from transfer.evidence import compare
from transfer.model_card import Facts, metafile, model_card, transfer_results
from transfer.predictions import save_predictions
from transfer.report import write_report
from transfer.results import collect
from transfer.run_record import load_config
from transfer.table import format_table
from transfer.table5_json import load_table5, table5_markdown, validate_table5
from transfer.tasks import DATASETS, TASKS, Dataset, all_datasets, all_metrics
from transfer.transfer_report import note_transfer

REPO = Path(__file__).resolve().parents[2]
METRICS = {'mAP_11point_voc12det': 'VOC2012 mAP 11-point', 'mAP_area_voc12det': 'VOC2012 mAP area'}
CONFIG = f"""
_base_ = ['{REPO}/configs/demo/faster-rcnn_r18-c4_demo-voc07.py']
dataset = 'voc12det'
train_dataloader = dict(dataset=dict(data_root='data/VOCdevkit/VOC2012'))
val_dataloader = dict(dataset=dict(data_root='data/VOCdevkit/VOC2012'))
total_batch_size = 2
train_cfg = dict(max_epochs=1, val_interval=1)
"""
FOREIGN = """
_base_ = ['{base}']
train_dataloader = dict(dataset=dict(
    _delete_=True, type='VOCDataset',
    data_root='data/VOCdevkit/', ann_file='VOC2012/ImageSets/Main/train.txt'))
val_dataloader = dict(dataset=dict(ann_file='VOC2012/ImageSets/Main/val.txt'))
"""


@pytest.fixture(autouse=True)
def voc12det(tmp_path, monkeypatch):
    """An entry for detection on VOC2012 alone, and its config."""
    entry = Dataset(
        task='det',
        name='voc12det',
        key='det12',
        config=str(tmp_path / 'faster-rcnn_{network}_voc12det.py'),
        demo_config=str(tmp_path / 'faster-rcnn_r18_voc12det.py'),
        check=check_data.check_detection,
        heading='Detection, VOC2012',
        classes='Detection, VOC2012: AP of each class',
        card='PASCAL VOC 2012 (detection)',
        prefix='VOC2012',
        images=(('VOC2012',), ('VOC2012',)),
    )
    monkeypatch.setitem(DATASETS, ('det', 'voc12det'), entry)
    Path(entry.demo_config).write_text(CONFIG)
    return entry


@pytest.fixture
def backbone(tmp_path):
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / 'r18.pth')
    return contenders.backbone_file('SD', str(tmp_path / 'r18.pth'), tmp_path / 'work/backbones')


@pytest.fixture
def work_dir(voc12det, backbone, tmp_path):
    """What two runs have left, and two on VOC2007 with other test images."""
    for dataset in (DATASETS['det', 'voc07'], voc12det):
        for name, found in (('BL', 5), ('SD', 10)):
            run = Detections(
                image=np.arange(12),
                label=np.zeros(12, int),
                score=np.linspace(1, 0, 12),
                hit=np.arange(12) < found,
                boxes=np.ones((12, 1), int),
            )
            folder = tmp_path / f'work/det_{dataset.name}' / name / 'seed0'
            folder.mkdir(parents=True)
            save_predictions(folder, run, [f'{dataset.name}_{number}' for number in range(12)])
            values = [np.nanmean(resampled_ap(run, np.ones((1, 12)), mode)) for mode in ('11points', 'area')]
            result = {
                'name': name,
                'task': 'det',
                'dataset': dataset.name,
                'seed': 0,
                'config': dataset.config,
                'sha256': sha256_of(backbone) if name == 'SD' else 'none',
                'metrics': dict(zip((one.name for one in dataset.metrics), values, strict=True)),
                'per_class': {'dog': values[0]},
            }
            (folder / 'result.json').write_text(json.dumps(result))
    return tmp_path / 'work'


def test_it_is_fine_tuned(backbone, tiny_voc, tmp_path):
    for folder in ('Annotations', 'ImageSets/Main'):
        shutil.copytree(tiny_voc / 'VOCdevkit/VOC2007' / folder, tiny_voc / 'VOCdevkit/VOC2012' / folder)
    asked, options = runner.find_task('det', 'voc12det'), runner.Options(data_root=str(tiny_voc))
    (run,) = runner.plan(asked, {'SD': backbone}, tmp_path / 'work/det_voc12det', options)
    assert run.module == 'transfer.finetune'
    result = finetune.finetune(finetune.parse_args(run.arguments))
    assert result['dataset'] == 'voc12det' and list(result['metrics']) == list(METRICS)

    (tiny_voc / 'VOCdevkit/VOC2012/ImageSets/Main/test.txt').unlink()
    with pytest.raises(InputError, match=r'VOC2012/ImageSets/Main/test.txt does not exist'):
        runner.plan(asked, {'SD': backbone}, tmp_path / 'other', options)
    with pytest.raises(InputError, match='there are det voc07, .*, det voc12det'):
        runner.find_task('det', 'coco')


def test_its_results_are_compared_and_shown(work_dir, tmp_path):
    results = collect(work_dir, first=['BL'])
    assert all(title in format_table(results) for title in METRICS.values())
    verdicts = {one.metric: one for one in compare(results)}
    assert list(verdicts) == ['mAP_11point', 'mAP_area', *METRICS]
    for metric, title in METRICS.items():
        assert verdicts[metric].interval.image_error > 0, 'its predictions are resampled'
        assert f' {title}, 95% CI' in verdicts[metric].verdict.text

    content = note_transfer(work_dir, results, [])
    assert load_table5(work_dir / 'transfer.json') == content
    entry = content['backbones'][1]['det12']
    assert entry['metric'] == 'mAP_11point_voc12det' and list(entry['per_class']) == ['dog']
    assert entry['mAP_area_voc12det']['values'] == [results[-1]['metrics']['mAP_area_voc12det']]
    assert all(title in table5_markdown(content) for title in METRICS.values())
    page = write_report(content, tmp_path / 'report.html').read_text()
    for said in ('>Detection, VOC2012<', 'Detection, VOC2012: AP of each class', *METRICS.values()):
        assert said in page, said
    entry['mean'] = 2.0
    with pytest.raises(InputError, match=r'backbones\[1\]\.det12\.mean must be the mean of values'):
        validate_table5(content)


def test_its_results_are_published(work_dir, tmp_path):
    transfers = transfer_results([work_dir], sha256_of(tmp_path / 'r18.pth'), 'BL')
    recipe = {'algorithm': 'SD', 'classes': 9, 'data': 'a', 'epochs': 1, 'total batch': 2}
    files = {'a.pth': '', 'a.safetensors': ''}
    facts = Facts('sd', 'resnet18', 1, 'sd.py', recipe, {}, transfers, files, '', 'mit')
    _, result = yaml.safe_load(metafile(facts))['Models'][0]['Results']
    assert (result['Task'], result['Dataset']) == ('Object Detection', 'PASCAL VOC 2012 (detection)')
    assert list(result['Metrics']) == list(METRICS.values())
    assert all(f'name: {title}' in model_card(facts) for title in METRICS.values())


def test_a_foreign_config_is_taken_for_it(tmp_path):
    root = Path(importlib.util.find_spec('mmdet').submodule_search_locations[0]) / '.mim/configs'
    path = tmp_path / 'foreign.py'
    path.write_text(FOREIGN.format(base=root / 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py'))
    cfg = load_config(path)
    assert (cfg.task, cfg.dataset) == ('det', 'voc12det')
    with pytest.raises(InputError, match='there are det voc07, det voc0712, seg voc12, det voc12det'):
        load_config(path, {'val_dataloader.dataset.ann_file': 'VOC2007/ImageSets/Main/test.txt'})


def test_entries_have_names_of_their_own_and_configs_that_name_them(voc12det):
    assert len({one.key for one in DATASETS.values()}) == len(DATASETS)
    assert len(all_metrics()) == sum(len(one.metrics) for one in all_datasets().values())
    assert len({one.title for one in all_metrics().values()}) == len(all_metrics())
    for (task, name), one in DATASETS.items():
        assert task in TASKS
        networks = ('r18',) if one is voc12det else ('r18', 'r34', 'r50', 'r101', 'r152')
        full_size = [one.config.format(network=network) for network in networks]
        for config in (one.demo_config.format(network='r18'), *full_size):
            cfg = load_config(REPO / config)
            assert (cfg.task, cfg.dataset) == (task, name)
