import pytest
import torch
from mmengine.optim.scheduler import CosineRestartLR, MultiStepLR

from sd_pretrain.cli import InputError
from sd_pretrain.schedule import (
    check_ends,
    check_scheduler,
    learning_rate,
    mini_generation,
    teacher_iteration,
)

ENDS = [4, 6, 11]


def optimizer(lr=0.1):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def cosine(sgd, periods, weights=None, **kwargs):
    weights = weights or [1] * len(periods)
    return CosineRestartLR(
        sgd, periods=periods, restart_weights=weights, eta_min=0, **{'by_epoch': False, **kwargs}
    )


def test_each_iteration_has_its_teacher():
    iterations = range(1, 12)
    assert [mini_generation(step, ENDS) for step in iterations] == [1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3]
    assert [teacher_iteration(step, ENDS) for step in iterations] == [0, 0, 0, 0, 4, 4, 6, 6, 6, 6, 6]


@pytest.mark.parametrize('iteration', [0, 12])
def test_iterations_outside_the_run_are_refused(iteration):
    with pytest.raises(ValueError, match='outside 1 to 11'):
        mini_generation(iteration, ENDS)


def test_learning_rate_by_hand():
    assert learning_rate(1, ENDS, [0.1, 0.2, 0.3]) == pytest.approx(0.1)
    assert learning_rate(3, ENDS, [0.1, 0.2, 0.3]) == pytest.approx(0.05)
    assert learning_rate(5, ENDS, [0.1, 0.2, 0.3]) == pytest.approx(0.2)
    assert learning_rate(6, ENDS, [0.1, 0.2, 0.3]) == pytest.approx(0.1)


def test_learning_rate_is_that_of_the_real_scheduler():
    ends, alphas = [40, 65, 165], [0.1, 0.05, 0.2]
    sgd = optimizer(0.1)
    scheduler = cosine(sgd, [40, 25, 100], [1, 0.5, 2])
    for iteration in range(1, 166):
        assert sgd.param_groups[0]['lr'] == pytest.approx(learning_rate(iteration, ends, alphas), rel=1e-9)
        sgd.step()
        scheduler.step()


@pytest.mark.parametrize(
    'ends, message',
    [
        (10, r'must be a list, such as \[45, 90\], found 10'),
        ([], 'positive whole'),
        ([0, 10], 'positive whole'),
        ([2.5, 10], 'positive whole'),
        ([5, 5, 10], r'ascending, found \[5, 5, 10\]'),
        ([7, 5, 10], 'ascending'),
        ([5, 12], r'beyond the run: ends \[5, 12\], run length 10'),
        ([5, 10, 12], r'beyond the run'),
        ([5, 8], r'before the run: ends \[5, 8\], run length 10'),
    ],
)
def test_bad_ends(ends, message):
    with pytest.raises(InputError, match=message):
        check_ends(ends, 10)


@pytest.mark.parametrize('ends', [[10], [1, 2, 10], (5, 10)])
def test_good_ends(ends):
    check_ends(ends, 10)


def test_scheduler_that_agrees():
    check_scheduler([cosine(optimizer(), [4, 2, 5])], ENDS, lr=0.1)


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda sgd: [cosine(sgd, [4, 7])], r'\[4, 11\].*\[4, 6, 11\]'),
        (lambda sgd: [cosine(sgd, [4, 2, 5], by_epoch=True)], 'by epoch'),
        (lambda sgd: [MultiStepLR(sgd, [4])], 'MultiStepLR'),
        (lambda sgd: None, 'found \\[\\]'),
    ],
)
def test_scheduler_that_disagrees(build, message):
    with pytest.raises(InputError, match=message):
        check_scheduler(build(optimizer()), ENDS)


def test_learning_rate_of_a_resumed_run_that_differs():
    with pytest.raises(InputError, match=r'0\.2.*0\.1'):
        check_scheduler([cosine(optimizer(), [4, 2, 5])], ENDS, lr=0.2)
