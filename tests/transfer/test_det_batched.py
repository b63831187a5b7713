"""A detection step for whole batches finds what mmdet finds image by image."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transfer import finetune, mmcv_ops

mmcv_ops.install()

from mmdet.models.task_modules import DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.bbox import bbox_overlaps  # noqa: E402

from transfer import det_assign, det_batched, det_boxes  # noqa: E402
from transfer.batch_detector import batch_detector  # noqa: E402
from transfer.speed import prepare_model  # noqa: E402

REPO = Path(__file__).resolve().parents[2]
DEMO = 'configs/demo/faster-rcnn_r18-c4_demo-voc07.py'
PARTS = ['data_preprocessor', 'rpn_head', 'roi_head']
SIZES = ((128, 160), (160, 128), (100, 140), (128, 160))
OBJECTS = (3, 0, 7, 1)
CUDA = torch.device('cuda', 0)


def random_boxes(count, size, chance):
    corner = torch.rand(count, 2, generator=chance) * torch.tensor(size[::-1]) * 0.6
    return torch.cat([corner, corner + 8 + torch.rand(count, 2, generator=chance) * 50], 1)


def instances(counts, chance, classes=20):
    return [
        InstanceData(
            bboxes=random_boxes(count, size, chance),
            labels=torch.randint(0, classes, (count,), generator=chance),
        )
        for count, size in zip(counts, SIZES, strict=True)
    ]


def batch(objects=OBJECTS, seed=0):
    chance = torch.Generator().manual_seed(seed)
    samples = []
    for size, found in zip(SIZES, instances(objects, chance), strict=True):
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1, 1)))
        sample.gt_instances = found
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=chance) for size in SIZES]
    return {'inputs': images, 'data_samples': samples}


def both(config=DEMO, **options):
    """A detector as mmdet has it, and the same for whole batches."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(REPO / config)
    cfg.merge_from_dict(options)
    torch.manual_seed(0)
    stock = MODELS.build(cfg.model)
    with torch.no_grad():  # few equal scores: their order is nobody's
        stock.rpn_head.rpn_cls.weight.mul_(60)
    ours = copy.deepcopy(stock)
    assert batch_detector(ours) == PARTS
    assert stock.state_dict().keys() == ours.state_dict().keys()
    return stock, ours


def step(model, data, seed):
    """Losses and gradients of a training step, and the next random number."""
    model.train().zero_grad()
    data = model.data_preprocessor(copy.deepcopy(data), training=True)
    torch.manual_seed(seed)
    found = model(**data, mode='loss')
    total, losses = model.parse_losses(found)
    total.backward()
    grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return data['inputs'], losses, grads, torch.rand(1)


FPN = 'configs/det/faster-rcnn_r18-fpn_8xb2_voc07.py'
SETTINGS = [
    pytest.param(DEMO, {}, OBJECTS, id='demo'),
    pytest.param(DEMO, {}, (0, 0, 0, 0), id='nothing'),
    pytest.param(DEMO, {'model.train_cfg.rpn.pos_weight': 2.0}, OBJECTS, id='weighted'),
    pytest.param(DEMO, {'model.train_cfg.rcnn.pos_weight': 2.0}, OBJECTS, id='weighted-rois'),
    pytest.param(DEMO, {'model.train_cfg.rpn.allowed_border': 0}, OBJECTS, id='inside'),
    pytest.param(DEMO, {'model.train_cfg.rpn_proposal.min_bbox_size': 20}, OBJECTS, id='large'),
    pytest.param(FPN, {}, OBJECTS, id='fpn'),
]


@pytest.mark.parametrize('config, options, objects', SETTINGS)
def test_a_step_is_mmdets(config, options, objects):
    stock, ours = both(config, **options)
    for seed in range(2):
        data = batch(objects, seed)
        images, losses, grads, after = step(stock, data, seed)
        our_images, our_losses, our_grads, our_after = step(ours, data, seed)
        assert torch.equal(images, our_images)
        assert torch.equal(after, our_after), 'the same random numbers were drawn'
        assert losses.keys() == our_losses.keys()
        for key, value in losses.items():
            torch.testing.assert_close(our_losses[key], value, rtol=1e-5, atol=1e-6)
        assert grads.keys() == our_grads.keys()
        for name, grad in grads.items():
            assert (our_grads[name] - grad).norm() <= 2e-3 * grad.norm() + 1e-6, name


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def test_a_step_is_mmdets_on_each_device(device):
    """Prepared as for a training: both are channels-last on a GPU, where sums come in any order."""
    stock, ours = (prepare_model(model).to(device) for model in both())
    for seed in range(3):
        data = batch(seed=seed)
        images, losses, grads, _ = step(stock, data, seed)
        our_images, our_losses, our_grads, _ = step(ours, data, seed)
        assert images.device.type == our_images.device.type == device
        torch.testing.assert_close(our_images, images)
        assert losses.keys() == our_losses.keys()
        for key, value in losses.items():
            torch.testing.assert_close(our_losses[key], value, rtol=1e-3, atol=1e-4)
        for name, grad in grads.items():
            assert (our_grads[name] - grad).norm() <= 1e-2 * grad.norm() + 1e-5, name


@pytest.mark.parametrize('batched', [False, True])
def test_rois_are_not_rounded_by_bfloat16(batched):
    """Features are, and so are those of layer4 on the RoIs; the gradient goes through."""
    model, types = prepare_model(both()[batched]), {}
    extractor = model.roi_head.bbox_roi_extractor
    for part in (model.backbone.layer3, extractor.roi_layers[0], model.roi_head.shared_head):
        part.register_forward_hook(
            lambda module, inputs, out: types.update({module: [one.dtype for one in (*inputs, out)]})
        )
    with torch.autocast('cpu', torch.bfloat16):
        grads = step(model, batch(), 0)[2]
    coarse, fine = torch.bfloat16, torch.float32
    assert list(types.values()) == [[coarse, coarse], [fine, fine, fine], [fine, coarse]]
    assert grads['backbone.layer3.0.conv1.weight'].any()
    assert extractor(feats=(torch.ones(1, 256, 4, 4, dtype=coarse),), rois=torch.ones(1, 5)).dtype == fine


def test_what_does_not_fit_into_memory_at_once_is_done_image_by_image(monkeypatch):
    monkeypatch.setattr(det_batched, '_MOST_OVERLAPS', 0)
    stock, ours = both()
    data = batch()
    assert step(stock, data, 0)[1] == step(ours, data, 0)[1]


def test_detections_are_mmdets():
    stock, ours = both()
    found = []
    for model in (stock, ours):
        data = model.eval().data_preprocessor(copy.deepcopy(batch()))
        with torch.no_grad():
            found.append(model(**data, mode='predict'))
    for one, other in zip(*found, strict=True):
        one, other = one.pred_instances, other.pred_instances
        assert len(one) == len(other) > 0
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(one.labels, other.labels)


ASSIGNERS = [
    dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=True),
    dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.0, match_low_quality=True),
    dict(pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False),
]


@pytest.mark.parametrize('settings', ASSIGNERS)
def test_objects_are_assigned_and_sampled_as_mmdet_does(settings):
    chance = torch.Generator().manual_seed(1)
    assigner = MaxIoUAssigner(**settings)
    sampler = RandomSampler(num=40, pos_fraction=0.25, add_gt_as_proposals=False)
    objects = instances(OBJECTS, chance)
    priors = torch.stack([random_boxes(300, size, chance) for size in SIZES])
    priors[:, :4] = objects[2].bboxes[:4]  # some fit exactly, two of them the same object
    priors[:, 4] = objects[2].bboxes[0]
    there = torch.rand(4, 300, generator=chance) < 0.8
    found = det_assign.assign(priors, there, det_assign.Truth(objects), assigner)
    torch.manual_seed(5)
    sampled = det_assign.sample(found.numpy(), sampler)
    torch.manual_seed(5)
    for image, truth in enumerate(objects):
        mine = InstanceData(priors=priors[image][there[image]])
        expected = assigner.assign(mine, truth)
        assert torch.equal(found[image][there[image]], expected.gt_inds)
        assert (found[image][~there[image]] == -2).all()
        chosen = sampler.sample(expected, mine, truth)
        place = np.flatnonzero(there[image])
        for ours, theirs in zip(sampled, (chosen.pos_inds, chosen.neg_inds), strict=True):
            assert np.array_equal(ours[image], place[theirs.numpy()])


def test_overlaps_and_deltas_are_to_the_bit_mmdets():
    chance = torch.Generator().manual_seed(2)
    boxes, others = (torch.stack([random_boxes(50, size, chance) for size in SIZES]) for _ in range(2))
    others[:, 0] = boxes[:, 0]
    others[:, 1, 2:] = others[:, 1, :2]  # no area, and nothing in common with the next
    boxes[:, 1, 2:] = boxes[:, 1, :2]
    assert torch.equal(det_boxes.overlaps(boxes, others), bbox_overlaps(boxes, others))
    coder = DeltaXYWHBBoxCoder(target_means=(0.1, 0.2, 0.3, 0.4), target_stds=(0.1, 0.1, 0.2, 0.2))
    priors, objects = boxes[0, 2:], others[0, 2:]
    assert torch.equal(det_boxes.encode(coder, priors, objects), coder.encode(priors, objects))
    deltas = torch.randn(48, 4, generator=chance) * 20  # some stretch a box beyond the limit
    assert torch.equal(det_boxes.decode(coder, priors, deltas), coder.decode(priors, deltas))


class BlockingCopies(TorchDispatchMode):
    """Lists operations that copy from the host to a GPU while the host waits."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        given, made = (
            {one.device.type for one in tree_leaves(some) if isinstance(one, torch.Tensor)}
            for some in ((args, kwargs), out)
        )
        # What is filled with a number of the host gets it as an argument of the kernel.
        filled = function is torch.ops.aten.fill_.Tensor
        if 'cpu' in given and 'cuda' in made and not filled and not kwargs.get('non_blocking'):
            self.found.append(str(function))
        return out


def test_a_blocking_copy_would_be_found_out():
    with FakeTensorMode(), BlockingCopies() as copies:
        there = torch.zeros(4, device=CUDA)
        there[torch.zeros(2, dtype=torch.long, device=CUDA)] = 1.0
        there.new_tensor([1.0])
        there[:2] = 1.0
        torch.zeros(4).to(CUDA, non_blocking=True)
    assert copies.found == ['aten.index_put_.default', 'aten._to_copy.default']


def test_targets_wait_for_nothing_else_of_a_gpu_and_all_is_on_it(monkeypatch):
    """By fake tensors, which know their device, and refuse to be read and to meet those of another."""
    _, ours = both()
    read = []

    def pretend(tensor):
        assert tensor.device == CUDA
        read.append(tuple(tensor.shape))
        return np.arange(tensor.numel()).reshape(tensor.shape) % 4 - 1  # two objects an image

    monkeypatch.setattr(det_batched, 'read', pretend)
    monkeypatch.setattr(det_assign, '_choose', lambda gallery, count: gallery[:count])
    metas = [dict(img_shape=size, pad_shape=size) for size in SIZES]
    with FakeTensorMode(allow_non_fake_inputs=True):
        objects = [
            InstanceData(bboxes=torch.rand(2, 4, device=CUDA), labels=torch.zeros(2, device=CUDA).long())
            for _ in SIZES
        ]
        ours.rpn_head.get_anchors([(10, 10)], metas, device=CUDA)  # takes the shapes of anchors there
        copies = BlockingCopies()
        with copies:
            anchors, flags = ours.rpn_head.get_anchors([(10, 10)], metas, device=CUDA)
            *targets, number = ours.rpn_head.get_targets(anchors, flags, objects, metas)
        assert {one.device for some in targets for one in some} == {CUDA} and number == 4 * 64
        monkeypatch.setattr(ours.rpn_head, '_without_overlaps', lambda boxes, *_: boxes)
        scores, deltas = (torch.rand(4, count, 10, 10, device=CUDA) for count in (9, 36))
        with copies:
            boxes = ours.rpn_head.predict_by_feat(
                [scores], [deltas], batch_img_metas=metas, cfg=ours.train_cfg.rpn_proposal
            )
        assert boxes.shape == (4, 500, 4) and boxes.device == CUDA

        monkeypatch.setattr(ours.roi_head, '_bbox_forward', lambda _, rois: dict(cls_score=rois, bbox_pred=0))
        monkeypatch.setattr(ours.roi_head.bbox_head, 'loss', lambda *inputs: inputs)
        samples = [DetDataSample(gt_instances=one) for one in objects]
        found = [InstanceData(bboxes=torch.rand(count, 4, device=CUDA)) for count in (30, 40, 0, 50)]
        with copies:
            rois, _, *rest = ours.roi_head.loss((), found, samples)
        assert {one.device for one in (rois, *rest)} == {CUDA}
    assert copies.found == []
    assert read == [(4, 900), (4, 50)]


def test_an_image_without_an_anchor_inside_is_refused():
    _, ours = both(**{'model.train_cfg.rpn.allowed_border': 0})
    data = batch()
    data['inputs'][1] = data['inputs'][1][:, :20, :20]
    data['data_samples'][1].set_metainfo(dict(img_shape=(20, 20)))
    with pytest.raises(ValueError, match='no anchor inside its borders.*allowed_border to -1'):
        step(ours, data, 0)


SABL = dict(
    _delete_=True,
    type='SABLHead',
    num_classes=20,
    bbox_coder=dict(type='BucketingBBoxCoder', num_buckets=14, scale_factor=1.7),
)
UNKNOWN = [
    ('rpn_head', {'train_cfg.rpn.assigner.gt_max_assign_all': False}),
    ('rpn_head', {'train_cfg.rpn.sampler.neg_pos_ub': 3}),
    ('rpn_head', {'rpn_head.bbox_coder.use_box_type': True}),
    ('rpn_head', {'rpn_head.bbox_coder.add_ctr_clamp': True}),
    ('roi_head', {'train_cfg.rcnn.assigner.ignore_iof_thr': 0.5}),
    ('roi_head', {'roi_head.bbox_head.reg_decoded_bbox': True}),
    ('roi_head', {'roi_head.bbox_head': SABL}),
    ('data_preprocessor', {'data_preprocessor.pad_value': 1}),
]


@pytest.mark.parametrize('part, options', UNKNOWN)
def test_a_part_with_unknown_settings_stays_mmdets(part, options):
    init_default_scope('mmdet')
    cfg = Config.fromfile(REPO / DEMO)
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    model = MODELS.build(cfg.model)
    assert batch_detector(model) == [one for one in PARTS if one != part]
    assert type(getattr(model, part)).__module__.startswith('mmdet.')


@pytest.mark.parametrize('asked, parts', [([], PARTS), (['batched_heads=False'], None)])
def test_fine_tuning_does_it_unless_told_not_to(asked, parts, tiny_voc, tmp_path):
    work_dir = tmp_path / 'work'
    command = [str(REPO / DEMO), '--backbone', 'none', '--work-dir', str(work_dir)]
    options = [*asked, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    finetune.finetune(
        finetune.parse_args([*command, '--data-root', str(tiny_voc), '--cfg-options', *options])
    )
    assert json.loads((work_dir / 'result.json').read_text())['metrics']
    (log,) = work_dir.glob('*/*.log')
    said = [line.split(': ')[-1] for line in log.read_text().splitlines() if 'for whole batches' in line]
    assert said == ([', '.join(parts)] if parts else [])
