import math

import pytest
import torch

from sd_pretrain.losses import sd_loss, top_score_difference

# Softmax (3/4, 1/4) for the student; divided by T = 2, (4/5, 1/5) for the teacher.
STUDENT = torch.tensor([[math.log(3), 0.0]])
TEACHER = torch.tensor([[2 * math.log(4), 0.0]])
LABEL = torch.tensor([0])


def test_asymmetric_loss_equals_numbers_by_hand():
    loss = sd_loss(STUDENT, TEACHER, LABEL, temperature=2)
    assert loss['loss_ce'].item() == pytest.approx(1.5 * -math.log(3 / 4))
    kl = 4 / 5 * math.log((4 / 5) / (3 / 4)) + 1 / 5 * math.log((1 / 5) / (1 / 4))
    assert loss['loss_kl'].item() == pytest.approx(kl, abs=1e-7)


@pytest.mark.parametrize('temperature', [0.5, 1])
def test_temperatures_of_one_and_less(temperature):
    """Born-again networks have T = 1."""
    loss = sd_loss(STUDENT, TEACHER, LABEL, temperature, lambda_s=0)['loss_kl'].item()
    p = 1 / (1 + 16 ** (-1 / temperature))
    kl = p * math.log(p / (3 / 4)) + (1 - p) * math.log((1 - p) / (1 / 4))
    assert loss == pytest.approx(kl, abs=1e-6)


def test_defaults_are_the_papers_temperature_and_hintons_scale():
    assert sd_loss(STUDENT, TEACHER, LABEL) == sd_loss(STUDENT, TEACHER, LABEL, temperature=2)
    scaled = [
        sd_loss(STUDENT, TEACHER, LABEL, symmetric=True, **more) for more in ({}, {'scale_by_t2': True})
    ]
    assert scaled[0] == scaled[1]


def test_weights_are_applied():
    loss = sd_loss(STUDENT, TEACHER, LABEL, temperature=2, lambda_s=0.25, lambda_t=3)
    plain = sd_loss(STUDENT, TEACHER, LABEL, temperature=2, lambda_s=1, lambda_t=1)
    assert loss['loss_ce'].item() == pytest.approx(0.25 * plain['loss_ce'].item())
    assert loss['loss_kl'].item() == pytest.approx(3 * plain['loss_kl'].item())


def test_without_teacher_it_is_plain_cross_entropy():
    loss = sd_loss(STUDENT, None, LABEL, temperature=2, lambda_s=7)
    assert list(loss) == ['loss_ce']
    assert loss['loss_ce'].item() == pytest.approx(-math.log(3 / 4))


def test_student_logits_are_not_divided_by_the_temperature():
    student = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
    sd_loss(student, teacher, torch.tensor([0, 2]), temperature=3, lambda_s=0)['loss_kl'].backward()
    expected = (student.detach().softmax(1) - (teacher / 3).softmax(1)) / 2
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize('scale_by_t2, factor', [(True, 3.0), (False, 1 / 3)])
def test_symmetric_form_divides_both(scale_by_t2, factor):
    student = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, -1.0]])
    loss = sd_loss(student, teacher, torch.tensor([0]), 3, symmetric=True, scale_by_t2=scale_by_t2)
    loss['loss_kl'].backward()
    expected = factor * ((student.detach() / 3).softmax(1) - (teacher / 3).softmax(1))
    torch.testing.assert_close(student.grad, expected)


def test_soft_labels():
    half = sd_loss(STUDENT, None, torch.tensor([[0.5, 0.5]]))['loss_ce'].item()
    assert half == pytest.approx(-0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4))


def test_float32_under_autocast_and_no_gradient_for_the_teacher():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 50, generator=generator).bfloat16().requires_grad_()
    teacher = torch.randn(4, 50, generator=generator).bfloat16().requires_grad_()
    labels = torch.tensor([1, 2, 3, 4])
    with torch.autocast('cpu', torch.bfloat16):
        loss = sd_loss(student, teacher, labels, 2)
    exact = sd_loss(student.double().float(), teacher.double().float(), labels, 2)
    for name in ('loss_ce', 'loss_kl'):
        assert loss[name].dtype == torch.float32
        torch.testing.assert_close(loss[name], exact[name], rtol=0, atol=0)
    sum(loss.values()).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((STUDENT[0], None, LABEL), r'\(N, C\)'),
        ((STUDENT, TEACHER.repeat(2, 1), LABEL), 'do not fit'),
        ((STUDENT, TEACHER, LABEL, 0), 'temperature'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sd_loss(*arguments)


# Softmax (0.4, 0.3, 0.2, 0.1) and (0.1, 0.6, 0.1, 0.2).
SCORES = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.6, 0.1, 0.2]]).log()


@pytest.mark.parametrize(
    'classes, expected',
    [
        (2, ((0.4 - 0.3) + (0.6 - 0.2)) / 2),
        (3, ((0.4 - 0.25) + (0.6 - 0.15)) / 2),
        (4, ((0.4 - 0.2) + (0.6 - 0.4 / 3)) / 2),
    ],
)
def test_top_score_difference_equals_numbers_by_hand(classes, expected):
    assert top_score_difference(SCORES, classes).item() == pytest.approx(expected, abs=1e-6)


def test_top_score_difference_lets_secondary_classes_emerge():
    logits = SCORES.clone().requires_grad_()
    top_score_difference(logits, 3).backward()
    # Descent lowers the first class, and raises the second and third of each image.
    assert (logits.grad[0] > 0).tolist() == [True, False, False, False]
    assert (logits.grad[0, 1:3] < 0).all() and (logits.grad[1, [0, 3]].min() < 0)


def test_top_score_difference_is_of_five_classes_by_default():
    logits = torch.tensor([[3.0, 2.5, 2.0, 1.0, 0.5, 0.0]])
    assert top_score_difference(logits) == top_score_difference(logits, 5) != top_score_difference(logits, 6)


@pytest.mark.parametrize('classes', [1, 5])
def test_top_score_difference_of_classes_that_are_not_there(classes):
    with pytest.raises(ValueError, match=f'2 to 4, found {classes}'):
        top_score_difference(SCORES, classes)
