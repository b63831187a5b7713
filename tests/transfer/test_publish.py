"""Publishing: the three libraries load the files as they are; the card and the metafile say what is known."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from mmengine.config import Config
from safetensors.torch import load_file
from torchvision.models import resnet18

from sd_pretrain.cli import InputError
from transfer.checkpoint_io import sha256_of
from transfer.contenders import backbone_file
from transfer.model_card import Facts, Transfer, Transfers, metafile, recipe, transfer_results
from transfer.publish import check_loadable, check_timm_loads, publish
from transfer.timm_network import TimmNetwork

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """What a finished SD pretraining of the demo leaves, its weights those of the first step."""
    from mmengine.registry import MODELS

    import sd_pretrain.classifier  # noqa: F401

    folder = tmp_path_factory.mktemp('work_dirs') / 'sd_r18_demo'
    folder.mkdir()
    cfg = Config.fromfile(REPO / 'configs/demo/sd_r18_demo.py')
    cfg.dump(folder / 'sd_r18_demo.py')
    torch.manual_seed(0)
    model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, folder / 'snapshot_2.pth')
    result = {'config': 'configs/demo/sd_r18_demo.py', 'top1': 0.715, 'top5': 0.958}
    (folder / 'result.json').write_text(json.dumps(result))
    return folder


@pytest.fixture(scope='module')
def transfer_dir(work_dir, tmp_path_factory):
    """Fine-tunings of that network, and of another, which is the baseline."""
    folder = tmp_path_factory.mktemp('transfer')
    torch.manual_seed(1)
    torch.save(resnet18().state_dict(), folder / 'other.pth')
    for name, source, values in (('BL', folder / 'other.pth', (0.5, 0.51)), ('Ours', work_dir, (0.6, 0.62))):
        backbone = backbone_file(name, str(source), folder / 'backbones')
        for seed, value in enumerate(values):
            run = folder / 'seg_voc12' / name / f'seed{seed}'
            run.mkdir(parents=True)
            content = {
                'name': name,
                'task': 'seg',
                'dataset': 'voc12',
                'seed': seed,
                'config': 'configs/seg/deeplabv3_r18-d16-syncbn_8xb1_voc12aug.py',
                'sha256': sha256_of(backbone),
                'metrics': {'mIoU': value},
            }
            (run / 'result.json').write_text(json.dumps(content))
    return folder


@pytest.fixture(scope='module')
def published(work_dir, transfer_dir, tmp_path_factory):
    return publish(work_dir, tmp_path_factory.mktemp('out') / 'sd', [transfer_dir], 'apache-2.0')


def test_three_libraries_load_it_as_their_users_do(published, work_dir):
    assert published.pth.name == f'sd_r18_demo-{sha256_of(published.pth)[:8]}.pth'
    assert published.safetensors.name == f'sd_r18_demo-{sha256_of(published.safetensors)[:8]}.safetensors'
    source = torch.load(work_dir / 'snapshot_2.pth', weights_only=True)['state_dict']
    network = resnet18(num_classes=100)
    network.load_state_dict(torch.load(published.pth, weights_only=True))
    assert torch.equal(network.layer4[1].conv2.weight, source['network.layer4.1.conv2.weight'])
    assert load_file(published.safetensors).keys() == network.state_dict().keys()
    images = torch.randn(1, 3, 64, 64)
    from_timm = timm.create_model('resnet18', num_classes=100, checkpoint_path=str(published.safetensors))
    with torch.no_grad():
        torch.testing.assert_close(from_timm.eval()(images), network.eval()(images), rtol=1e-5, atol=1e-5)


def test_files_that_disagree_are_found_out(published, tmp_path):
    tensors = torch.load(published.pth, weights_only=True)
    tensors['layer2.0.bn1.bias'] += 1
    torch.save(tensors, tmp_path / 'other.pth')
    with pytest.raises(InputError, match='computes other logits than torchvision'):
        check_loadable(tmp_path / 'other.pth', published.safetensors, 'resnet18', 100)


def test_the_card(published):
    card = ModelCard.load(published.card)
    assert card.data.license == 'apache-2.0' and card.data.library_name == 'timm'
    results = {(one.dataset_name, one.metric_name): one.metric_value for one in card.data.eval_results}
    assert results == {
        ('emoji world (demo)', 'Top 1 Accuracy'): 71.5,
        ('emoji world (demo)', 'Top 5 Accuracy'): 95.8,
        ('PASCAL VOC 2012', 'mIoU'): 61.0,
    }
    for said in (
        '| temperature (T) | 2.0 |',
        '| ends (epochs) | [3, 6] |',
        'Ours better: +10.5 mIoU, 95% CI [',
        f"checkpoint_path='{published.safetensors.name}'",
        sha256_of(published.pth),
    ):
        assert said in card.text, said
    # What it tells its readers to type works.
    code = card.text.split('```python\n')[1].split('```')[0]
    subprocess.run([sys.executable, '-c', code], cwd=published.card.parent, check=True)


def test_results_of_an_earlier_network_of_that_name_are_not_taken(transfer_dir, tmp_path):
    folder = shutil.copytree(transfer_dir, tmp_path / 'transfer')
    torch.manual_seed(2)
    torch.save(resnet18().state_dict(), tmp_path / 'new.pth')
    backbone_file('Ours', str(tmp_path / 'new.pth'), folder / 'backbones')
    with pytest.raises(InputError, match='no finished fine-tuning of this network, only of others'):
        transfer_results([folder], sha256_of(tmp_path / 'new.pth'), 'BL')


def test_results_of_a_backbone_that_was_given_converted(work_dir, transfer_dir, tmp_path):
    folder = shutil.copytree(transfer_dir, tmp_path / 'transfer')
    (file,) = (folder / 'backbones').glob('Ours_mmdet-*.pth')
    file = file.rename(tmp_path / file.name)
    for path in folder.glob('seg_voc12/Ours/seed*/result.json'):
        path.write_text(json.dumps(json.loads(path.read_text()) | {'backbone': str(file)}))
    (found,) = transfer_results([folder], sha256_of(work_dir / 'snapshot_2.pth'), 'BL').values
    assert found.value == pytest.approx(0.61)


def test_the_card_of_one_of_several_pretrainings_says_which_it_is(work_dir, transfer_dir, tmp_path):
    folder = shutil.copytree(transfer_dir, tmp_path / 'transfer')
    source = sha256_of(work_dir / 'snapshot_2.pth')
    assert not any('This network' in text for text in transfer_results([folder], source, 'BL').tables)
    for seed, path in enumerate(sorted(folder.glob('seg_voc12/Ours/seed*/result.json'))):
        run = json.loads(path.read_text()) | {'pretraining': seed + 1}
        path.write_text(json.dumps(run | ({'sha256': f'{seed}', 'backbone': None} if seed else {})))
    found = transfer_results([folder], source, 'BL')
    assert found.tables[1].startswith('This network is Ours, seed 0; ') and found.values[0].seeds == (0,)


@pytest.mark.parametrize(
    ('config', 'algorithm', 'more'),
    [
        ('bl_r152_imagenet', 'BL (baseline)', {'mini-generations (K)': 1}),
        ('se_r152_imagenet', 'SE (Snapshot Ensemble)', {'mini-generations (K)': 2}),
        ('sd_r152_imagenet', 'SD (Snapshot Distillation)', {'temperature (T)': 2.0}),
        (
            'cifar100/ban_resnet20',
            'teacher-student optimisation, taught by another run',
            {'temperature (T)': 1.0},
        ),
    ],
)
def test_the_recipe_names_the_algorithm(config, algorithm, more):
    found = recipe(Config.fromfile(REPO / f'configs/{config}.py', import_custom_modules=False))
    assert {'algorithm': algorithm, **more}.items() <= found.items()
    assert ('temperature (T)' in found) == ('temperature (T)' in more)


def test_the_metafile(published):
    index = yaml.safe_load(published.metafile.read_text())
    (collection,), (model,) = index['Collections'], index['Models']
    assert 'SGD with Momentum' in collection['Metadata']['Training Techniques']
    assert model['In Collection'] == collection['Name']
    assert (published.metafile.parent / model['Weights']).is_file()
    assert (REPO / model['Config']).is_file()
    assert model['Metadata']['Parameters'] == sum(
        value.numel() for value in resnet18(num_classes=100).parameters()
    )
    assert {(one['Task'], one['Dataset']): one['Metrics'] for one in model['Results']} == {
        ('Image Classification', 'emoji world (demo)'): {'Top 1 Accuracy': 71.5, 'Top 5 Accuracy': 95.8},
        ('Semantic Segmentation', 'PASCAL VOC 2012'): {'mIoU': 61.0},
    }


def test_the_metafile_has_the_results_of_every_work_dir():
    values = [
        Transfer('det', 'PASCAL VOC 2007', metric, value, (0,), None)
        for value in (0.7, 0.8)
        for metric in ('mAP_11point', 'mAP_area')
    ]
    recipe = {'algorithm': 'BL', 'classes': 10, 'data': 'x', 'epochs': 1, 'total batch': 2}
    facts = Facts('n', 'resnet18', 1, 'c.py', recipe, {}, Transfers(tuple(values)), {'n.pth': ''}, '', 'mit')
    (model,) = yaml.safe_load(metafile(facts))['Models']
    assert [one['Metrics'] for one in model['Results']] == [
        {'mAP 11-point': 70.0, 'mAP area': 70.0},
        {'mAP 11-point': 80.0, 'mAP area': 80.0},
    ]


def test_again_gives_the_same_bytes(published, work_dir, transfer_dir):
    before = {path.name: path.read_bytes() for path in vars(published).values()}
    publish(work_dir, published.card.parent, [transfer_dir], 'apache-2.0')
    folder = published.card.parent
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], 'nothing is left behind'


def test_another_network_is_published_for_timm(tmp_path, monkeypatch):
    """With the arguments that it was built with, and what was fine-tuned from its very checkpoint."""
    cfg = Config.fromfile(REPO / 'configs/demo/sd_r18_demo.py')
    cfg.model.network, cfg.model.network_args = 'test_vit', {'img_size': 48, 'init_values': 0.1}
    cfg.optim_wrapper.optimizer = {'type': 'FusedAdamW', 'lr': 1e-3, 'weight_decay': 0.05}
    work_dir = tmp_path / 'sd_vit'
    work_dir.mkdir()
    cfg.dump(work_dir / 'sd_vit.py')
    (work_dir / 'result.json').write_text(json.dumps({'config': 'sd_vit.py', 'top1': 0.5}))
    torch.manual_seed(0)
    network = timm.create_model('test_vit', num_classes=100, **cfg.model.network_args)
    meta = {'schema': 1, 'arch': 'test_vit', 'network_args': cfg.model.network_args.to_dict()}
    weights = {f'network.{name}': value for name, value in network.state_dict().items()}
    torch.save({'meta': meta, 'state_dict': weights}, work_dir / 'snapshot_2.pth')
    run = tmp_path / 'transfer' / 'seg_voc12' / 'V' / 'seed0'
    run.mkdir(parents=True)
    content = {'name': 'V', 'task': 'seg', 'dataset': 'voc12', 'seed': 0, 'metrics': {'mIoU': 0.6}}
    content |= {
        'sha256': sha256_of(work_dir / 'snapshot_2.pth'),
        'config': 'configs/seg/fpn_timm_8xb1_voc12aug.py',
    }
    (run / 'result.json').write_text(json.dumps(content))

    published = publish(work_dir, tmp_path / 'out', [tmp_path / 'transfer'])
    card = ModelCard.load(published.card)
    assert 'torchvision' not in card.text and 'img_size=48, init_values=0.1' in card.text
    assert ('PASCAL VOC 2012', 'mIoU', 60.0) in {
        (one.dataset_name, one.metric_name, one.metric_value) for one in card.data.eval_results
    }
    assert '| optimizer | AdamW |' in card.text
    (collection,) = yaml.safe_load(published.metafile.read_text())['Collections']
    assert collection['Metadata']['Architecture'] == ['test_vit']
    assert collection['Metadata']['Training Techniques'] == [
        'SD (Snapshot Distillation)',
        'AdamW',
        'Weight Decay',
    ]
    code = card.text.split('```python\n')[1].split('```')[0].replace('timm.create', 'network = timm.create')
    monkeypatch.chdir(published.card.parent)
    exec(code, scope := {})
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert scope['network'].eval()(images) == pytest.approx(network.eval()(images), abs=1e-5)
    tensors = torch.load(published.pth, weights_only=True)
    tensors['blocks.0.norm1.bias'] += 1
    torch.save(tensors, tmp_path / 'other.pth')
    with pytest.raises(InputError, match='timm from .pth computes other logits than the pretraining'):
        check_timm_loads(
            [tmp_path / 'other.pth'],
            TimmNetwork('test_vit', meta['network_args']),
            network.state_dict(),
            100,
        )


def test_mistakes_are_named(work_dir, transfer_dir, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(InputError, match="unknown licence 'mine': one of apache-2.0"):
        publish(work_dir, out, license='mine')
    (tmp_path / 'half').mkdir()
    with pytest.raises(InputError, match='half has no result.json: its pretraining has not ended'):
        publish(tmp_path / 'half', out)
    with pytest.raises(InputError, match='is not that of a pretraining'):
        (tmp_path / 'half' / 'result.json').write_text('{}')
        publish(tmp_path / 'half', out)
    for path in (transfer_dir / 'backbones').glob('Ours*'):
        path.rename(tmp_path / path.name)
    try:
        with pytest.raises(InputError, match='has no finished fine-tuning of this network, only of others'):
            publish(work_dir, out, [transfer_dir])
    finally:
        for path in tmp_path.glob('Ours*'):
            path.rename(transfer_dir / 'backbones' / path.name)
    assert not out.exists() and not list(tmp_path.glob('.out*'))
    out.mkdir()
    (out / 'thesis.tex').touch()
    with pytest.raises(InputError, match=r'holds other files \(thesis.tex\)'):
        publish(work_dir, out)
    assert [path.name for path in out.iterdir()] == ['thesis.tex']
