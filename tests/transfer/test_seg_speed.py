"""The loss of segmentation is mmseg's, and no value of it is read back; upsampling is PyTorch's."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from transfer import mmcv_ops

mmcv_ops.install()

from mmseg.models import EncHead, FCNHead  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from transfer.seg_speed import loss_on_device, upsample  # noqa: E402

DEMO = Path(__file__).resolve().parents[2] / 'configs/demo/deeplabv3_r18-d16_demo-voc12.py'
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)]
LABELLED = dict(type='CrossEntropyLoss', avg_non_ignore=True)
LOSSES = {
    'labelled': LABELLED,
    'all': dict(type='CrossEntropyLoss', avg_non_ignore=False),
    'weighted': dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0, 0.5, 3.0]),
    'sum': dict(type='CrossEntropyLoss', avg_non_ignore=True, reduction='sum'),
    'sigmoid': dict(type='CrossEntropyLoss', avg_non_ignore=True, use_sigmoid=True),
    'two': [LABELLED, dict(type='DiceLoss', loss_name='loss_dice')],
    'added up': [LABELLED, {**LABELLED, 'loss_weight': 0.4}],
}


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


def head(**settings):
    plain = dict(num_convs=1, dropout_ratio=0, align_corners=False)
    settings = dict(in_channels=6, channels=5, num_classes=4) | plain | settings
    return FCNHead(**settings)


def truth(classes, size, batch=2, device='cpu'):
    """Some classes with ignored pixels, the last image all ignored."""
    marks = torch.randint(0, classes, (batch, 1, *size), generator=torch.Generator().manual_seed(0))
    marks[:, :, :4] = 255
    marks[-1] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=one)).to(device) for one in marks]


class ReadBack(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: values that are read, and masks that choose."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func is torch.ops.aten.index.Tensor and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        self.count += masks or func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('size', [(33, 40), (7, 9), (5, 3), (1, 1)])
def test_upsampling_and_its_gradients_are_those_of_pytorch(size, align_corners, device):
    maps = torch.randn(2, 3, 5, 7, dtype=torch.float64, device=device, requires_grad=True)
    maps = maps.contiguous(memory_format=torch.channels_last)
    wanted = F.interpolate(maps, size, mode='bilinear', align_corners=align_corners)
    with torch.autocast(device, torch.bfloat16):
        found = upsample(maps, size, align_corners)
    toward = torch.randn_like(wanted)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, maps, toward), torch.autograd.grad(wanted, maps, toward)
    )


@pytest.mark.parametrize('losses', LOSSES.values(), ids=LOSSES)
def test_loss_accuracy_and_gradients_are_those_of_mmseg(losses):
    torch.manual_seed(0)
    stock = head(loss_decode=losses)
    ours = nn.ModuleDict({'decode_head': copy.deepcopy(stock)})
    assert loss_on_device(ours) == ['decode_head']
    assert ours.decode_head.state_dict().keys() == stock.state_dict().keys()
    found = []
    for one in (stock, ours.decode_head):
        features = torch.randn(2, 6, 5, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        said = one.loss([features], truth(4, (20, 24)), {})
        sum(value for name, value in said.items() if 'loss' in name).backward()
        found.append((said, features.grad))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize('device', DEVICES)
def test_nothing_is_read_back(device):
    cfg = Config.fromfile(DEMO).model.decode_head
    cfg.norm_cfg.type = 'BN'
    model = nn.ModuleDict({'decode_head': MODELS.build(cfg)}).to(device).train()
    features = torch.randn(2, cfg.in_channels, 6, 7, device=device)

    def count():
        with ReadBack() as read:
            model.decode_head.loss([features], truth(21, (81, 105), device=device), {})
        return read.count

    assert count() == 3, "mmseg's reads the number of labelled pixels, and chooses them twice"
    assert loss_on_device(model) == ['decode_head'] and count() == 0


def test_heads_with_a_loss_or_a_choice_of_pixels_of_their_own_are_left_alone():
    sampling = head(sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10))
    encoding = EncHead(in_channels=[6], channels=5, num_classes=4, in_index=(0,), num_codes=2)
    model = nn.ModuleDict({'decode_head': encoding, 'auxiliary_head': sampling})
    assert loss_on_device(model) == []
    assert type(model.decode_head) is EncHead and type(model.auxiliary_head) is FCNHead
