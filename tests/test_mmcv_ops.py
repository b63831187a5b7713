"""Every op that stands in for mmcv's compiled one, through mmcv's own wrappers, against a plain reference."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest
import torch

from sd_pretrain.cli import InputError
from transfer import mmcv_ops

mmcv_ops.install()
from mmcv import ops  # noqa: E402

CUDA = pytest.param('cuda', marks=pytest.mark.cuda)
DEVICES = ['cpu', CUDA]
stand_in = pytest.mark.skipif(mmcv_ops.install() == 'compiled', reason='a compiled mmcv is in use')


def random_boxes(count, size, generator):
    corner = torch.rand(count, 2, generator=generator) * size * 0.7
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * size * 0.5 + 0.5], dim=1)


def brute_force_nms(boxes, scores, threshold, offset):
    """Walk from the best box down, keep it unless it overlaps a kept one by more than the threshold."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        x1, y1, x2, y2 = boxes[i].tolist()
        for j in kept:
            u1, v1, u2, v2 = boxes[j].tolist()
            inter = max(0, min(x2, u2) - max(x1, u1) + offset) * max(0, min(y2, v2) - max(y1, v1) + offset)
            areas = (x2 - x1 + offset) * (y2 - y1 + offset) + (u2 - u1 + offset) * (v2 - v1 + offset)
            if inter / (areas - inter) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
def test_nms_equals_the_loop(device, offset, threshold):
    generator = torch.Generator().manual_seed(3)
    boxes = random_boxes(120, 20.0, generator).double()
    scores = torch.rand(120, generator=generator).double()
    dets, kept = ops.nms(boxes.to(device), scores.to(device), threshold, offset=offset)
    assert kept.tolist() == brute_force_nms(boxes, scores, threshold, offset)
    assert 10 < len(kept) < 118  # or it would show nothing
    torch.testing.assert_close(dets.cpu(), torch.cat([boxes, scores[:, None]], dim=1)[kept.cpu()])


@pytest.mark.parametrize('device', DEVICES)
def test_nms_drops_only_above_the_threshold(device):
    # 3 of 10 pixels shared: IoU is exactly 3/10, in float32 a little more than the double 0.3.
    boxes = torch.tensor([[0.0, 0, 6.5, 1], [3.5, 0, 10, 1]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert len(ops.nms(boxes, scores, 0.3)[1]) == 2
    assert len(ops.nms(boxes, scores, 0.2999)[1]) == 1


@pytest.mark.parametrize('device', DEVICES)
def test_nms_offset_counts_the_last_pixel(device):
    # Pixels 0..9 and 5..14: 5 of 15 shared with offset 1, (9 - 5) of 14 without.
    boxes = torch.tensor([[0.0, 0, 9, 0.5], [5, 0, 14, 0.5]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.31, offset=1)[1].tolist() == [0]
    assert ops.nms(boxes, scores, 0.31, offset=0)[1].tolist() == [0, 1]


@pytest.mark.parametrize('device', DEVICES)
def test_nms_of_ties_keeps_the_first_of_identical_boxes(device):
    boxes = torch.tensor([[0.0, 0, 4, 4], [9, 9, 12, 12]], device=device).repeat(3, 1)
    kept = ops.nms(boxes, torch.full((6,), 0.5, device=device), 0.5)[1]
    assert kept.tolist() == [0, 1]


@pytest.mark.parametrize('device', DEVICES)
def test_nms_takes_no_boxes_half_boxes_and_autocast(device):
    assert ops.nms(torch.zeros(0, 4, device=device), torch.zeros(0, device=device), 0.5)[1].tolist() == []
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]], device=device)
    scores = torch.tensor([0.25, 0.5, 0.125], device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert ops.nms(boxes.bfloat16(), scores.bfloat16(), 0.5)[1].tolist() == [1, 2]


def bilinear(image, y, x):
    """Value of ``image`` (C, H, W) between pixels; outside, the border's value for one pixel, then 0."""
    height, width = image.shape[-2:]
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros_like(image[:, 0, 0])
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - (x - left)) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - (x - left)) + image[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def roi_align_by_definition(images, rois, size, scale, sampling_ratio, aligned):
    """Mean of each bin's samples, as in Mask R-CNN (Sec. 3); ``aligned`` moves the grid by half a pixel."""
    bins = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0) for c in corners)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        rows = sampling_ratio or int(-(-height // size[0]))
        columns = sampling_ratio or int(-(-width // size[1]))
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [
                    bilinear(
                        images[int(index)],
                        y1 + (i + (a + 0.5) / rows) * height / size[0],
                        x1 + (j + (b + 0.5) / columns) * width / size[1],
                    )
                    for a in range(rows)
                    for b in range(columns)
                ]
                bins.append(torch.stack(samples).mean(0))
    return torch.stack(bins).view(len(rois), *size, -1).permute(0, 3, 1, 2)


# Image index, then corners at twice the feature map's scale: inside, over each border, far outside, tiny.
ROIS = torch.tensor(
    [
        [0, 2.0, 1.0, 11.0, 9.0],
        [1, -4.2, -3.0, 6.0, 5.5],
        [1, 9.3, 7.7, 20.0, 18.0],
        [0, 40.0, 40.0, 50.0, 50.0],
        [0, 5.1, 5.2, 5.6, 5.5],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_and_its_gradient_equal_the_definition(device, aligned, sampling_ratio):
    images = torch.rand(2, 3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    reference_input = images.clone().requires_grad_()
    expected = roi_align_by_definition(reference_input, ROIS, (3, 2), 0.5, sampling_ratio, aligned)
    upstream = torch.rand(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected.backward(upstream)

    images = images.to(device).requires_grad_()
    pooled = ops.roi_align(images, ROIS.to(device), (3, 2), 0.5, sampling_ratio, 'avg', aligned)
    pooled.backward(upstream.to(device))
    torch.testing.assert_close(pooled.cpu(), expected)
    torch.testing.assert_close(images.grad.cpu(), reference_input.grad)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_passes_gradcheck(device, aligned):
    images = torch.rand(2, 1, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    rois = ROIS[:3].to(device)
    # CUDA adds gradients up in any order, hence the tolerance between two runs.
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois, (2, 2), 0.4, 0, 'avg', aligned), images, nondet_tol=1e-12
    )


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_under_autocast_takes_and_gives_the_features_dtype(device):
    images = torch.rand(2, 3, 6, 8, device=device)
    expected = ops.roi_align(images, ROIS.float().to(device), (3, 2), 0.5, 0, 'avg', True)
    half = images.bfloat16().requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        pooled = ops.roi_align(half, ROIS.float().to(device), (3, 2), 0.5, 0, 'avg', True)
    pooled.float().sum().backward()
    assert pooled.dtype == half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), expected, atol=0.01, rtol=0.01)


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_takes_no_boxes(device):
    images = torch.rand(1, 2, 4, 4, device=device, requires_grad=True)
    pooled = ops.roi_align(images, torch.zeros(0, 5, device=device), (3, 3), 1.0, 0, 'avg', True)
    pooled.sum().backward()
    assert pooled.shape == (0, 2, 3, 3)
    assert images.grad.abs().sum() == 0


@stand_in
def test_roi_align_by_maximum_is_refused():
    with pytest.raises(InputError, match="roi_align with pool_mode='max'"):
        ops.roi_align(torch.rand(1, 1, 4, 4), torch.tensor([[0, 0, 0, 2.0, 2.0]]), 2, 1.0, 0, 'max', True)


def focal_loss_by_formula(logits, target, gamma, alpha, weight=None):
    """Eqn 5 of the paper, -alpha_t (1 - p_t)^gamma log(p_t), for each element."""
    loss = torch.zeros_like(logits)
    for n, label in enumerate(target.tolist()):
        for c in range(logits.shape[1]):
            p = 1 / (1 + torch.exp(-logits[n, c]))
            p_t, alpha_t = (p, alpha) if c == label else (1 - p, 1 - alpha)
            loss[n, c] = -alpha_t * (1 - p_t) ** gamma * torch.log(p_t)
            if weight is not None and label < logits.shape[1]:
                loss[n, c] = loss[n, c] * weight[label]
    return loss


@pytest.mark.parametrize(
    'device', [pytest.param('cpu', marks=stand_in), CUDA]
)  # mmcv compiles it for CUDA only
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_and_its_gradient_equal_the_formula(device, weighted):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 3, dtype=torch.float64, generator=generator) * 3
    target = torch.tensor([0, 1, 2, 3, 0, 1])  # 3 is background
    # The compiled op reads weight[3], past the end: compare it without background.
    rows = target < 3 if weighted else target <= 3
    logits, target = logits[rows], target[rows]
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if weighted else None
    reference_input = logits.clone().requires_grad_()
    expected = focal_loss_by_formula(reference_input, target, 2.0, 0.25, weight)
    expected.sum().backward()

    logits = logits.to(device).requires_grad_()
    on_device = weight.to(device) if weighted else None
    loss = ops.sigmoid_focal_loss(logits, target.to(device), 2.0, 0.25, on_device, 'none')
    torch.testing.assert_close(loss.cpu(), expected)
    loss.sum().backward()
    torch.testing.assert_close(logits.grad.cpu(), reference_input.grad)


@stand_in
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_focal_loss_passes_gradcheck(device, reduction):
    logits = torch.randn(4, 3, dtype=torch.float64, device=device, requires_grad=True)
    target = torch.tensor([0, 3, 2, 1], device=device)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(
        lambda x: ops.sigmoid_focal_loss(x, target, 1.5, 0.3, weight, reduction), logits
    )


@stand_in
def test_focal_loss_of_certain_logits_stays_finite():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, 'sum')
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * 200 + 0.25 * 200)
    assert torch.isfinite(logits.grad).all()


@stand_in
def test_an_op_that_is_not_offered_names_itself_and_the_way_out():
    with pytest.raises(InputError, match=r"'border_align_forward'.*--no-build-isolation"):
        ops.border_align(torch.rand(1, 8, 4, 4), torch.rand(1, 16, 4), 3)


@stand_in
def test_the_module_is_one_that_import_tools_can_find():
    spec = importlib.util.find_spec('mmcv._ext')
    assert spec is not None and spec.loader is not None
    module = sys.modules['mmcv._ext']
    assert module.__spec__ is spec
    assert not hasattr(module, '__path__')
    from mmcv.utils import collect_env

    assert 'torchvision' in collect_env()['MMCV Compiler']


def test_installing_twice_changes_nothing():
    before = sys.modules['mmcv._ext']
    assert mmcv_ops.install() == mmcv_ops.install()
    assert sys.modules['mmcv._ext'] is before


def run_with_mmcv_package(tmp_path, extension):
    """What ``install`` says in a new process whose mmcv is a package with this ``_ext.py``."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / '_ext.py').write_text(extension)
    script = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        from transfer import mmcv_ops
        print(mmcv_ops.install())
        print(hasattr(sys.modules['mmcv._ext'], 'made_by_a_compiler'))
    """)
    command = [sys.executable, '-c', script, str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_a_compiled_mmcv_wins(tmp_path):
    assert run_with_mmcv_package(tmp_path, 'made_by_a_compiler = True').stdout.split() == ['compiled', 'True']


def test_a_compiled_mmcv_that_does_not_load_is_replaced_with_a_warning(tmp_path):
    broken = "raise ImportError('_ext.so: undefined symbol: _ZN3c104')"
    done = run_with_mmcv_package(tmp_path, broken)
    assert done.stdout.split()[0] == 'torchvision'
    assert 'do not load with torch' in done.stderr and 'undefined symbol' in done.stderr
