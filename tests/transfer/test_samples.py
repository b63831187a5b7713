import json
from pathlib import Path

import pytest
import torch

from sd_pretrain.cli import InputError, set_data_root
from transfer.samples import detection_samples, segmentation_samples
from transfer.voc import CLASSES

REPO = Path(__file__).resolve().parents[2]
CONFIGS = {'det': 'faster-rcnn_r18-c4_demo-voc07.py', 'seg': 'deeplabv3_r18-d16_demo-voc12.py'}
DOG = CLASSES.index('dog')


def finished_run(work_dir, task, data_root, classes=CLASSES):
    """A run dir as fine-tuning leaves it, of a network that was never trained but always says dog."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from transfer import mmcv_ops

    mmcv_ops.install()
    if task == 'det':
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    cfg = Config.fromfile(REPO / 'configs' / 'demo' / CONFIGS[task])
    set_data_root(cfg, data_root)
    cfg.model.backbone.init_cfg = None
    if task == 'det':
        cfg.model.roi_head.shared_head.init_cfg = None
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    layer = model.roi_head.bbox_head.fc_cls if task == 'det' else model.decode_head.conv_seg
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.bias[DOG if task == 'det' else DOG + 1] = 20.0
    work_dir.mkdir(parents=True)
    cfg.dump(work_dir / CONFIGS[task])
    meta = {'dataset_meta': {'classes': classes if task == 'det' else ('background', *CLASSES)}}
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, work_dir / 'epoch_3.pth')
    result = {'config': f'configs/demo/{CONFIGS[task]}', 'checkpoint': 'epoch_3.pth'}
    (work_dir / 'result.json').write_text(json.dumps(result))
    return work_dir


def test_detections_are_drawn_beside_the_truth(tiny_voc, tmp_path):
    run = finished_run(tmp_path / 'run', 'det', tiny_voc)
    samples = detection_samples({'BL': run, 'SD': run}, count=2)
    assert [one.name for one in samples] == ['000005', '000006']
    for sample in samples:
        assert [panel.title for panel in sample.panels] == ['truth', 'BL', 'SD']
        said = sample.panels[1].text.removeprefix('BL: ').split(', ')
        assert set(said) == {'dog 1.00'}
        assert len(said) <= 8
        assert sample.panels[1].image.size == sample.panels[0].image.size == (512, 384)
    assert [one.panels[0].text for one in samples] == ['truth: chair, cow', 'truth: diningtable, dog']


def test_detections_have_the_names_of_the_networks_own_classes(tiny_voc, tmp_path):
    run = finished_run(tmp_path / 'run', 'det', tiny_voc, classes=CLASSES[::-1])
    (sample,) = detection_samples({'BL': run}, count=1)
    assert set(sample.panels[1].text.removeprefix('BL: ').split(', ')) == {f'{CLASSES[::-1][DOG]} 1.00'}


def test_difficult_objects_are_marked_in_the_truth(write_tiny_voc, tmp_path):
    data_root = write_tiny_voc(tmp_path / 'data')
    run = finished_run(tmp_path / 'run', 'det', data_root)
    path = data_root / 'VOCdevkit/VOC2007/Annotations/000005.xml'
    path.write_text(path.read_text().replace('<difficult>0', '<difficult>1', 1))
    (sample,) = detection_samples({'BL': run}, count=1)
    assert sample.panels[0].text == 'truth: chair (difficult), cow'


def test_masks_are_drawn_beside_the_truth(tiny_voc, tmp_path):
    run = finished_run(tmp_path / 'run', 'seg', tiny_voc)
    (sample,) = segmentation_samples({'BL': run}, count=1)
    assert sample.name == '000005'
    assert [panel.text for panel in sample.panels] == ['truth: chair 12%, cow 12%', 'BL: dog 100%']


@pytest.mark.parametrize('lost', ['result.json', 'epoch_3.pth', CONFIGS['det']])
def test_unfinished_run_is_an_error(tmp_path, lost):
    for name in (CONFIGS['det'], 'epoch_3.pth'):
        (tmp_path / name).write_text('')
    result = {'config': f'configs/demo/{CONFIGS["det"]}', 'checkpoint': 'epoch_3.pth'}
    (tmp_path / 'result.json').write_text(json.dumps(result))
    (tmp_path / lost).unlink()
    with pytest.raises(InputError, match=lost.replace('.', r'\.')):
        detection_samples({'BL': tmp_path})
