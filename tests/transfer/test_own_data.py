"""Data of a user's own, boxes in COCO's layout and masks in folders: run, compared, drawn; and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from foreign_common import SMALL_RETINANET, run, stock
from PIL import Image

from sd_pretrain.cli import InputError
from transfer import finetune, probe, runner
from transfer.backbone import config_arch
from transfer.predictions import image_names, load_predictions
from transfer.results import collect
from transfer.run_record import load_config
from transfer.samples import segmentation_samples
from transfer.table import format_table
from transfer.tasks import DATASETS, all_datasets, all_metrics, dataset_of
from transfer.transfer_report import note_transfer, report_transfer
from transfer.voc import read_annotation, read_list

REPO = Path(__file__).resolve().parents[2]
NAMES = ('chair', 'dog', 'cow')
DET = {'mAP_11point_fruit': 'fruit mAP 11-point', 'mAP_area_fruit': 'fruit mAP area'}
SEG = {'mIoU_fruit': 'fruit mIoU'}
TINY = """
total_batch_size = 2
train_cfg = dict(max_epochs=1, val_interval=1)
"""
# mmdet's own for COCO, as a user would bring it, with data of three classes.
RETINANET = f"""{SMALL_RETINANET}
dataset = 'fruit'
metainfo = dict(classes=('chair', 'dog', 'cow'))
model.update(bbox_head=dict(num_classes=3))
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    data_root='data/fruit', ann_file='annotations/train.json', data_prefix=dict(img='train/'),
    metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    data_root='data/fruit', ann_file='annotations/val.json', data_prefix=dict(img='val/'),
    metainfo=metainfo, pipeline=test_pipeline))
"""


def write_fruit(root, tiny_voc):
    """``root/fruit`` with what a tiny VOC tree shows of three classes, in COCO's layout and in folders."""
    voc07, voc12 = (tiny_voc / 'VOCdevkit' / name for name in ('VOC2007', 'VOC2012'))
    folder = root / 'fruit'
    (folder / 'annotations').mkdir(parents=True)
    for part, name in (('train', 'trainval'), ('val', 'test')):
        images, boxes = [], []
        (folder / part).mkdir()
        for number, image in enumerate(read_list(voc07 / f'ImageSets/Main/{name}.txt')):
            shutil.copy(voc07 / f'JPEGImages/{image}.jpg', folder / part)
            images.append({'id': number, 'file_name': f'{image}.jpg', 'width': 64, 'height': 48})
            for place, one in enumerate(read_annotation(voc07 / f'Annotations/{image}.xml').boxes):
                edges = [one.xmin - 1, one.ymin - 1, one.xmax - one.xmin + 1, one.ymax - one.ymin + 1]
                # Chairs in training, a dog and a cow in each test image.
                label = 0 if part == 'train' else place + 1
                box = {'bbox': edges, 'area': edges[2] * edges[3], 'category_id': 5 + label, 'iscrowd': 0}
                boxes.append({'id': len(boxes), 'image_id': number, **box})
        categories = [{'id': 5 + label, 'name': one} for label, one in enumerate(NAMES)]
        content = {'images': images, 'annotations': boxes, 'categories': categories}
        (folder / f'annotations/{part}.json').write_text(json.dumps(content))
    for part in ('train', 'val'):
        for kind in ('images', 'masks'):
            (folder / kind / part).mkdir(parents=True)
        for image in read_list(voc12 / f'ImageSets/Segmentation/{part}.txt'):
            shutil.copy(voc12 / f'JPEGImages/{image}.jpg', folder / 'images' / part)
            mask = np.asarray(Image.open(voc12 / f'SegmentationClass/{image}.png'))
            kinds = np.where((mask > 0) & (mask < 255), 1 + mask % 3, mask).astype(np.uint8)
            Image.fromarray(kinds).save(folder / f'masks/{part}/{image}.png')
    return root


@pytest.fixture
def fruit(tmp_path, tiny_voc):
    return write_fruit(tmp_path / 'own', tiny_voc)


def copied(tmp_path, example, base, classes):
    """A copy of one of configs/own, changed as its first lines say, on one of the demo's small recipes."""
    text = (REPO / 'configs/own' / example).read_text()
    for old, new in (
        (text.split("_base_ = ['")[1].split("'")[0], str(REPO / 'configs/demo' / base)),
        ("dataset = 'NAME'", "dataset = 'fruit'"),
        ("root = 'data/NAME'", "root = 'data/fruit'"),
        (text.split('\nclasses = ')[1].split(')')[0] + ')', repr(classes)),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = tmp_path / example
    path.write_text(text + TINY)
    return str(path)


def coco(tmp_path):
    return copied(tmp_path, 'det_coco.py', 'faster-rcnn_timm-fpn_demo-voc07.py', NAMES)


def folders(tmp_path):
    return copied(tmp_path, 'seg_folders.py', 'fpn_timm_demo-voc12.py', ('background', *NAMES))


CONFIGS = {'det': coco, 'seg': folders}


def refused(config, task, data_root, tmp_path, **settings):
    options = runner.Options(
        config=config, data_root=str(data_root), cfg_options=[f'{key}={one}' for key, one in settings.items()]
    )
    with pytest.raises(InputError) as error:
        runner.plan(runner.find_task(task, 'fruit', config), {'R': 'none:resnet18'}, tmp_path / 'no', options)
    return str(error.value)


def test_the_examples_for_copying_run_and_their_results_are_compared_and_drawn(
    in_repo, backbone, fruit, tmp_path
):
    for task, metrics, images in (('det', DET, [4, 2]), ('seg', SEG, [2, 2])):
        config = CONFIGS[task](tmp_path)
        asked = runner.find_task(task, 'fruit', config)
        options = runner.Options(config=config, data_root=str(fruit))
        files = {'A': backbone, 'R': 'none:resnet18'}
        for one in runner.plan(asked, files, tmp_path / f'w/{task}_fruit', options):
            result = finetune.finetune(finetune.parse_args(one.arguments))
            assert list(result['metrics']) == list(metrics)
            assert result['images'] == images and not result['demo']
            assert load_predictions(one.work_dir, task)[1] == ('000005', '000006')

    results = collect(tmp_path / 'w')
    table = format_table(results)
    assert all(title in table for title in (*DET.values(), *SEG.values()))
    content = note_transfer(tmp_path / 'w', results, [])
    assert [one['metric'] for one in content['comparisons']] == [*DET, *SEG]
    report_transfer(tmp_path / 'w', results, content)
    page = (tmp_path / 'w/report.html').read_text()
    for said in (
        '>Detection, fruit<',
        '>Segmentation, fruit<',
        'truth: dog, cow',
        'truth: chair 12%, dog 12%',
    ):
        assert said in page


@pytest.mark.parametrize(
    ('example', 'recipe'),
    [
        ('det_coco', 'det/faster-rcnn_timm-fpn_8xb2_voc07'),
        ('seg_folders', 'seg/fpn_timm_8xb1_voc12aug'),
        ('probe_folders', 'probe/svm-knn_timm-frozen_voc07'),
    ],
)
def test_the_examples_are_of_the_recipes_for_any_network(example, recipe):
    own, papers = (load_config(REPO / f'configs/{name}.py') for name in (f'own/{example}', recipe))
    assert (own.task, own.dataset, papers.task) == (papers.task, 'NAME', example.split('_')[0])
    assert config_arch(own) is None
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'total_batch_size', 'svm', 'knn', 'view'):
        assert own.get(key) == papers.get(key), key


def test_mmdets_own_config_for_coco(in_repo, backbone, fruit, tmp_path):
    path = tmp_path / 'retinanet.py'
    path.write_text(RETINANET.format(base=stock('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py')))
    result, work_dir = run('det', 'fruit', str(path), backbone, fruit, tmp_path)
    assert set(result['per_class']) == {'dog', 'cow'}, 'the test has no chair'
    stored, _ = load_predictions(work_dir, 'det')
    assert stored.boxes.tolist() == [[0, 1, 1], [0, 1, 1]]
    path.write_text(path.read_text().replace("dataset = 'fruit'\n", ''))
    with pytest.raises(
        InputError, match='a config for data of your own says what that is called: dataset = '
    ):
        run('det', 'fruit', str(path), backbone, fruit, tmp_path)


def test_voc_annotations_of_other_classes(in_repo, backbone, tiny_voc, tmp_path):
    config = coco(tmp_path)
    text = Path(config).read_text().replace("type='CocoDataset'", "type='XMLDataset'")
    for part, images in (('train', 'trainval'), ('val', 'test')):
        text = text.replace(f'annotations/{part}.json', f'ImageSets/Main/{images}.txt')
    text = text.replace("img='train/'", "sub_data_root=''").replace("img='val/'", "sub_data_root=''")
    text = text.replace("('chair'", "('bird'")  # training shows other classes than the test, and more
    Path(config).write_text(text.replace('data/fruit', 'data/VOCdevkit/VOC2007'))
    result, work_dir = run('det', 'fruit', config, backbone, tiny_voc, tmp_path)
    assert result['images'] == [4, 2] and set(result['per_class']) == {'cow', 'dog'}
    assert load_predictions(work_dir, 'det')[0].boxes.tolist() == [[0, 0, 1], [0, 1, 0]]


def test_masks_whose_zero_is_no_label(in_repo, backbone, fruit, tmp_path):
    config = folders(tmp_path)
    text = Path(config).read_text().replace("('background', 'chair'", "('chair'")
    Path(config).write_text(text.replace('own = dict(', 'own = dict(reduce_zero_label=True, '))
    result, work_dir = run('seg', 'fruit', config, backbone, fruit, tmp_path)
    assert set(result['per_class']) == {'chair', 'dog', 'cow'}
    (sample,) = segmentation_samples({'A': work_dir}, count=1)
    assert sample.panels[0].text == 'truth: chair 12%, dog 12%'


@pytest.fixture
def painted(tmp_path):
    """``data/fruit/{train,val}/{green,red}`` of 6 and 3 images each, one of them in a folder of its own."""
    rng = np.random.default_rng(0)
    for part, count in (('train', 6), ('val', 3)):
        for place, name in enumerate(('green', 'red')):
            for number in range(count):
                pixels = rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., 1 - place] += 100
                path = tmp_path / f'data/fruit/{part}/{name}' / ('', 'more')[number == 0] / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (path.parent / 'notes.txt').write_text('no image')
    return tmp_path / 'data'


FEW = ['knn.k=3', 'svm.folds=2', 'low_shot.shots=[1,2]', 'view.resize=32', 'view.crop=32']


def test_probes_of_folders(in_repo, backbone, painted, tmp_path):
    config = tmp_path / 'probe.py'
    text = (REPO / 'configs/own/probe_folders.py').read_text().replace('NAME', 'fruit')
    config.write_text(text.replace("'../probe", f"'{REPO}/configs/probe"))
    options = runner.Options(
        config=str(config), data_root=str(painted), cfg_options=FEW, work_dir=tmp_path / 'w'
    )
    asked = runner.find_task('probe', 'fruit', str(config))
    # ResNets and others by the same config.
    files = {'A': backbone, 'R': 'none:resnet18', 'X': 'none:test_convnext'}
    for one in runner.plan(asked, files, tmp_path / 'w/probe_fruit', options):
        result = probe.probe(finetune.parse_args(one.arguments))
        measured = ('mAP_linear', 'mAP_knn', 'mAP_low_shot', 'top1_linear', 'top1_knn')
        assert list(result['metrics']) == [f'{one}_fruit' for one in measured]
        assert list(result['per_class']) == ['green', 'red'] and result['images'] == [12, 6]
        assert result['metrics']['mAP_linear_fruit'] == 1, 'any network tells these'
        assert result['metrics']['top1_knn_fruit'] == 1
        names = load_predictions(one.work_dir, 'probe')[1]
        assert names[0] == 'green/1.png' and names[2] == 'green/more/0.png' and len(names) == 6
    results = collect(tmp_path / 'w')
    content = note_transfer(tmp_path / 'w', results, [])
    assert {one['class'] for one in content['class_comparisons']} == {'green', 'red'}
    assert {'mAP_knn_fruit', 'top1_knn_fruit'} < {one['metric'] for one in content['comparisons']}
    assert 'fruit top-1 k-NN' in format_table(results)

    def said(**settings):
        return refused(str(config), 'probe', painted, tmp_path, **settings)

    val = 'val_dataloader.dataset.data_root'
    assert 'fits to and tests on 12 images' in said(**{val: 'data/fruit/train'})
    assert 'has no folders, one for each class' in said(**{val: 'data/obst'})
    (painted / 'fruit/val/blue').mkdir()
    assert 'blue is of a class that' in said()
    shutil.move(painted / 'fruit/val/blue', painted / 'fruit/train/blue')
    assert 'blue has no images (.jpg' in said()
    (painted / 'fruit/train/blue').rmdir()
    with pytest.raises(InputError, match='none. names none: say which, as none:resnet50'):
        runner.plan(asked, {'R': 'none'}, tmp_path / 'no', options)


def test_its_entry_stands_beside_those_here():
    own = dataset_of('seg', 'fruit')
    assert own is dataset_of('seg', 'fruit') and own.own
    assert ('seg', 'fruit') in all_datasets() and ('seg', 'fruit') not in DATASETS
    assert not any(one.own for one in DATASETS.values())
    assert all_metrics()['mIoU_fruit'].title == 'fruit mIoU'
    with pytest.raises(InputError, match="'a/b' cannot name a folder"):
        dataset_of('det', 'a/b')
    with pytest.raises(InputError, match='need a --config'):
        runner.find_task('det', 'fruit')
    with pytest.raises(InputError, match='unknown task'):
        runner.find_task('pose', 'fruit', 'x.py')


def test_what_is_wrong_with_boxes_is_said(in_repo, fruit, tmp_path):
    config = coco(tmp_path)
    train, test = 'train_dataloader.dataset', 'val_dataloader.dataset'
    cat = "('chair','dog','cat')"
    for settings, said in (
        (
            {f'{one}.metainfo.classes': cat for one in (train, test)},
            'no image of det_coco.py has a box of cat: is that spelled as in the annotations?',
        ),
        ({f'{test}.metainfo.classes': cat}, 'class 2 is cow here and cat there'),
        ({'model.roi_head.bbox_head.num_classes': 20}, 'set model.roi_head.bbox_head.num_classes=3'),
        ({f'{test}.data_prefix.img': 'train/'}, 'has 2 images, of which 2 are not there'),
        ({f'{test}.ann_file': 'annotations/v.json'}, 'v.json: put the data there, or say with --data-root'),
        (
            {f'{test}.ann_file': 'annotations/train.json', f'{test}.data_prefix.img': 'train/'},
            'trains and tests on 4 images',
        ),
        ({'dataset': 'obst'}, 'is for det obst, not det fruit'),
    ):
        assert said in refused(config, 'det', fruit, tmp_path, **settings), settings
    annotations = fruit / 'fruit/annotations/val.json'
    annotations.write_text(annotations.read_text()[:-1])
    assert 'val.json is no JSON' in refused(config, 'det', fruit, tmp_path)


def test_the_truth_of_test_images_is_there_in_their_own_size(in_repo, fruit, tmp_path):
    config = coco(tmp_path)
    for steps, said in (
        ("[dict(type='LoadImageFromFile')]", 'tests without the truth'),
        (
            "[dict(type='LoadAnnotations', with_bbox=True), dict(type='Resize', scale=(9, 9))]",
            'resizes the truth of test images: LoadAnnotations comes after Resize',
        ),
    ):
        Path(config).write_text(
            f'{Path(config).read_text()}\nval_dataloader["dataset"]["pipeline"] = {steps}\n'
        )
        assert said in refused(config, 'det', fruit, tmp_path)


def test_what_is_wrong_with_masks_is_said(in_repo, fruit, tmp_path):
    config = folders(tmp_path)
    test = 'val_dataloader.dataset'
    for settings, said in (
        ({'model.decode_head.num_classes': 21}, 'set model.decode_head.num_classes=4'),
        ({f'{test}.data_prefix.seg_map_path': 'masks/train'}, '2 masks are not there'),
        ({f'{test}.img_suffix': '.png'}, 'no images in'),
        (
            {f'{test}.data_prefix.seg_map_path': 'images/val', f'{test}.seg_map_suffix': '.jpg'},
            'has 3 channels where the index of a class is expected',
        ),
    ):
        assert said in refused(config, 'seg', fruit, tmp_path, **settings), settings
    mask = fruit / 'fruit/masks/val/000006.png'
    values = np.array(Image.open(mask))
    values[0, 0] = 4
    Image.fromarray(values).save(mask)
    said = refused(config, 'seg', fruit, tmp_path)
    assert said.endswith('000006.png has the value 4, and the last of 4 classes is 3; 255 is no label')


def test_images_of_one_name_in_two_folders_are_told_apart(tmp_path):
    assert image_names([tmp_path / 'a/1.jpg', tmp_path / 'b/2.jpg']) == ['1', '2']
    assert image_names([tmp_path / 'a/1.jpg', tmp_path / 'b/1.jpg']) == ['a/1', 'b/1']
