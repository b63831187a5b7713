"""Fast fine-tuning computes what the slow one does: bfloat16, batches of test images, images kept."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data._utils.pin_memory import pin_memory

from sd_pretrain.bfloat16 import cpu_has_bf16
from sd_pretrain.cli import InputError, set_data_root
from sd_pretrain.optim import FusedSGD
from sd_pretrain.small_maps import SmallMapConv2d
from transfer import finetune, mmcv_ops, speed
from transfer.run_record import load_config

mmcv_ops.install()

from transfer.seg_speed import batch_evaluation  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
DET = str(REPO / 'configs/demo/faster-rcnn_r18-c4_demo-voc07.py')
SEG = str(REPO / 'configs/demo/deeplabv3_r18-d16_demo-voc12.py')
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)]
SHORT = ['total_batch_size=2', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']


@pytest.fixture(scope='module')
def data_root(tmp_path_factory, write_tiny_voc):
    return write_tiny_voc(tmp_path_factory.mktemp('voc') / 'data')


def test_each_head_of_a_cascade_says_float32():
    model = nn.Module()
    model.roi_head = nn.Module()
    model.roi_head.bbox_head = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
    speed.prepare_model(model)
    with torch.autocast('cpu', torch.bfloat16):
        assert {head(torch.ones(1, 4)).dtype for head in model.roi_head.bbox_head} == {torch.float32}


@pytest.mark.parametrize(
    ('capabilities', 'wanted'),
    [
        ({'amx_bf16': True}, True),
        ({'avx512_bf16': True, 'avx2': True}, True),
        ({'avx2': True}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_what_the_cpu_has_instructions_for(capabilities, wanted):
    assert cpu_has_bf16(capabilities) is wanted


def test_amp_without_such_instructions_is_warned_about_and_a_gpu_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(speed, 'cpu_has_bf16', lambda: False)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.warns(UserWarning, match='no bfloat16 instructions'):
        speed.check_amp(True)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.is_bf16_supported', lambda **_: False)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda: 'an old card')
    with pytest.raises(InputError, match='an old card lacks; run without --amp'):
        speed.check_amp(True)
    speed.check_amp(False)


def test_amp_replaces_a_loss_scaling_wrapper():
    options = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'}
    cfg = load_config(DET, options, amp=True)
    assert cfg.optim_wrapper.type == 'Bf16OptimWrapper' and 'loss_scale' not in cfg.optim_wrapper


def test_on_a_cpu_the_shared_roi_head_alone_knows_small_maps(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False))
    model.roi_head = nn.Module()
    model.roi_head.shared_head = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False))
    speed.prepare_model(model)
    assert type(model.roi_head.shared_head[0]) is SmallMapConv2d
    assert type(model.backbone[0]) is nn.Conv2d


@pytest.mark.parametrize(
    ('gpu', 'bfloat16', 'last'), [(False, False, False), (False, True, True), (True, False, True)]
)
def test_channels_last_on_a_gpu_and_where_a_cpu_trains_in_bfloat16(gpu, bfloat16, last, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: gpu)
    weight = speed.prepare_model(nn.Sequential(nn.Conv2d(2, 2, 3)), bfloat16)[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is last


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('config', [DET, SEG], ids=['det', 'seg'])
def test_training_in_bfloat16_needs_no_gpu_and_heads_say_float32(
    config, device, data_root, tmp_path, monkeypatch
):
    """The convolutions before a head's last layer run in bfloat16; its losses see float32."""
    seen, losses = {}, set()
    prepare = speed.prepare_model

    def note(module, _, out):
        seen[module.training] = out.dtype

    def note_loss(module, inputs):
        losses.add(inputs[0].dtype)

    def watched(model, bfloat16):
        prepared = prepare(model, bfloat16)
        prepared.backbone.layer3.register_forward_hook(note)
        for name, module in prepared.named_modules():
            if name.rsplit('.', 1)[-1].startswith('loss_'):
                module.register_forward_pre_hook(note_loss)
        return prepared

    monkeypatch.setattr(finetune, 'prepare_model', watched)
    args = finetune.parse_args(
        [
            *[config, '--backbone', 'none', '--work-dir', str(tmp_path / 'work'), '--amp'],
            *['--data-root', str(data_root), '--cfg-options', *SHORT],
        ]
    )
    result = finetune.finetune(args)
    assert seen == {True: torch.bfloat16, False: torch.float32}, 'the test is in float32'
    assert losses == {torch.float32}
    assert (result['gpus'] > 0) == (device == 'cuda')
    assert all(0 <= value <= 1 for value in result['metrics'].values())


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    ('config', 'options'),
    [(DET, []), (DET, ['batched_heads=False']), (SEG, [])],
    ids=['det', 'det-image-by-image', 'seg'],
)
def test_in_bfloat16_weights_and_momentum_lie_channels_last_and_batches_are_pinned_for_a_gpu(
    config, options, device, data_root, tmp_path, monkeypatch, request
):
    runners, pinned = [], set()

    def note(preprocessor, inputs):
        data, training = (*inputs, False)[:2]
        if training:
            sample = data['data_samples'][0]
            truth = sample.gt_instances.labels if config == DET else sample.gt_sem_seg.data
            pinned.update({data['inputs'][0].is_pinned(), truth.is_pinned()})

    class Watched(finetune.FinetuneRunner):
        def train(self):
            runners.append(self)
            self.model.data_preprocessor.register_forward_pre_hook(note)
            return super().train()

    monkeypatch.setattr(finetune, 'FinetuneRunner', Watched)
    # Not the last test's, which is gone: mmengine keeps one visualizer for a work dir.
    work_dir = tmp_path / request.node.callspec.id
    places = ['--backbone', 'none', '--work-dir', str(work_dir), '--data-root', str(data_root)]
    more = ['--cfg-options', *SHORT, *options, 'default_hooks.logger.interval=1']
    finetune.finetune(finetune.parse_args([config, *places, '--amp', *more]))

    assert pinned == {device == 'cuda'}
    optimizer = runners[0].optim_wrapper.optimizer
    assert type(optimizer) is FusedSGD and len(optimizer.state) > 20
    for weight, state in optimizer.state.items():
        momentum = state['momentum_buffer']
        assert weight.device.type == momentum.device.type == device
        assert weight.stride() == momentum.stride()
        assert weight.ndim < 4 or weight.is_contiguous(memory_format=torch.channels_last)
        assert weight.isfinite().all() and momentum.isfinite().all() and momentum.any()
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    losses = [log['loss'] for log in map(json.loads, file.read_text().splitlines()) if 'loss' in log]
    assert len(losses) == 2 and all(map(math.isfinite, losses))


@pytest.mark.parametrize(
    ('kind', 'more', 'wanted'),
    [
        ('SGD', {'momentum': 0.9, 'fused': True}, {'type': 'FusedSGD', 'momentum': 0.9}),
        ('AdamW', {'fused': True}, {'type': 'FusedAdamW'}),
        ('AdamW', {}, {'type': 'AdamW'}),
        ('AdamW', {'fused': True, 'amsgrad': True}, {'type': 'AdamW', 'fused': True, 'amsgrad': True}),
        ('Adam', {'fused': True}, {'type': 'Adam', 'fused': True}),
    ],
)
def test_fused_optimizers_are_ours_where_there_is_one(kind, more, wanted):
    given = {'type': 'OptimWrapper', 'optimizer': {'type': kind, 'lr': 0.1, **more}}
    assert speed.right_fused(given) == {'type': 'OptimWrapper', 'optimizer': {'lr': 0.1, **wanted}}
    assert given['optimizer']['type'] == kind, 'the config stays'


@pytest.mark.parametrize('config', [DET, SEG], ids=['det', 'seg'])
def test_logs_are_mmengines_though_no_iteration_is_waited_for(config, data_root, tmp_path, monkeypatch):
    logged = {}
    for name in ('ours', 'stock'):
        work_dir = tmp_path / name
        paths = ['--backbone', 'none', '--work-dir', str(work_dir), '--data-root', str(data_root)]
        options = [*SHORT, 'default_hooks.logger.interval=1']
        finetune.finetune(finetune.parse_args([config, *paths, '--cfg-options', *options]))
        (file,) = work_dir.glob('*/vis_data/scalars.json')
        logged[name] = [json.loads(line) for line in file.read_text().splitlines()]
        monkeypatch.setattr(finetune, 'wait_less', lambda cfg: None)
    assert len(logged['ours']) > 2 and 'loss' in logged['ours'][0]
    for one, other in zip(logged['ours'], logged['stock'], strict=True):
        assert list(one) == list(other)
        assert all(one[key] == other[key] for key in one if 'time' not in key)


@pytest.mark.parametrize(('config', 'tensors'), [(DET, 5), (SEG, 2)], ids=['det', 'seg'])
def test_batches_are_copied_to_a_gpu_from_pinned_memory_without_waiting(
    config, tensors, data_root, monkeypatch
):
    """Images and what their data samples hold: boxes and labels, also of objects to be ignored, or masks."""
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr(BaseDataElement, 'pin_memory', None, raising=False)  # to be taken away again
    cfg = load_config(config)
    set_data_root(cfg, data_root)
    speed.wait_less(cfg)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    preprocessor = speed.prepare_model(MODELS.build(cfg.model)).data_preprocessor
    batch = pseudo_collate([dataset[0], dataset[1]])

    pinned, copies = [], []
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, 'pin_memory', lambda tensor: pinned.append(tensor.clone()) or pinned[-1])
        moved = pin_memory(batch)
    places = {one.data_ptr() for one in pinned}
    with monkeypatch.context() as patch:

        def copy(tensor, *_, non_blocking):
            copies.append(non_blocking and tensor.data_ptr() in places)
            return tensor

        patch.setattr(torch.Tensor, 'to', copy)
        moved = preprocessor.cast_data(moved)
    assert copies == [True] * (2 * tensors)
    for one, other in zip(batch['data_samples'], moved['data_samples'], strict=True):
        assert one.metainfo == other.metainfo
        parts, others = dict(one.items()), dict(other.items())
        assert parts and parts.keys() == others.keys()
        for key, part in parts.items():
            assert str(sorted(part.all_items())) == str(sorted(others[key].all_items()))


def test_a_gpu_gets_pinned_batches_and_own_hooks_stay(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    cfg = load_config(DET, {'default_hooks.timer.type': 'MyTimerHook', 'train_dataloader.pin_memory': False})
    speed.wait_less(cfg)
    assert 'runtime_info' not in cfg.default_hooks and not cfg.train_dataloader.pin_memory
    cfg = load_config(DET)
    speed.wait_less(cfg)
    assert cfg.default_hooks.runtime_info.type == 'DeviceLogHook' and cfg.train_dataloader.pin_memory


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('padded', [True, False])
def test_test_images_of_any_sizes_in_one_batch_are_predicted_as_one_by_one(padded, mode):
    from mmseg.structures import SegDataSample

    init_default_scope('mmseg')
    torch.manual_seed(0)
    cfg = load_config(SEG)
    finetune.plain_bn(cfg.model)
    cfg.model.test_cfg = {'mode': mode, 'crop_size': (64, 64), 'stride': (48, 48)}
    if not padded:
        cfg.model.data_preprocessor.test_cfg = None
    model = MODELS.build(cfg.model).eval()
    # The fourth is larger than they are padded to.
    sizes = [(97, 113), (90, 112), (97, 113), (97, 130), (60, 101)]

    def step(part):
        metas = [{'ori_shape': size, 'img_shape': size} for size in sizes[part]]
        return model.val_step(
            {
                'inputs': images[part],
                'data_samples': [SegDataSample(metainfo=meta) for meta in metas],
            }
        )

    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    with torch.no_grad():
        alone = [step(slice(place, place + 1))[0] for place in range(len(sizes))]
        batch_evaluation(model, {'batch_size': 8})
        together = step(slice(None))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.seg_logits.data, other.seg_logits.data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('keep', [True, False])
def test_fine_tuning_decodes_each_image_once_unless_told_otherwise(keep, data_root, tmp_path, monkeypatch):
    import mmcv

    reads = []
    real = mmcv.imfrombytes
    monkeypatch.setattr(mmcv, 'imfrombytes', lambda *args, **kwargs: reads.append(1) or real(*args, **kwargs))
    args = finetune.parse_args(
        [
            *[SEG, '--backbone', 'none', '--work-dir', str(tmp_path / 'work'), '--data-root', str(data_root)],
            *['--cfg-options', *SHORT, 'train_cfg.max_epochs=2', f'cache_images={keep}'],
        ]
    )
    finetune.finetune(args)
    # Four images to train on and two to test on, each with its mask, two epochs.
    assert len(reads) == 12 * (1 if keep else 2)
