"""The loss of Snapshot Distillation: Eqns 1 to 3 of the paper, asymmetric as in Section 3.3.3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    temperature: float = 2.0,
    lambda_s: float | None = None,
    lambda_t: float = 1.0,
    symmetric: bool = False,
    scale_by_t2: bool = True,
) -> dict[str, Tensor]:
    """Both weighted terms of Eqn 3 for one mini-batch; their sum is what is minimised.

    The teacher's logits are divided by the temperature, the student's are not (*asymmetric* distillation):
    the aim is to bring secondary information to the student, not to match the teacher. Eqns 2 and 3 print the
    KL term inside a minus sign; as in all distillation, the divergence is minimised, so it is added here.

    Everything is computed in float32, also under autocast.

    Args:
        student_logits: ``(N, C)``, with gradient.
        teacher_logits: ``(N, C)``, used without gradient; ``None`` means no teacher (the first
            mini-generation), and the result is Eqn 1: cross entropy with weight 1, whatever ``lambda_s``
            says.
        labels: class indices ``(N,)`` or probabilities ``(N, C)``.
        temperature: ``T > 0``, of the teacher's logits.
        lambda_s: weight of the cross entropy; default ``1 + 1/T`` (Section 4.1.1).
        lambda_t: weight of the divergence.
        symmetric: divide the student's logits by ``T`` in the divergence as well, as Hinton et al. do.
        scale_by_t2: multiply the symmetric divergence by ``T^2``, which keeps the size of its gradient
            independent of ``T`` (Hinton et al., Section 2). Without effect on the asymmetric form.

    Returns:
        ``{'loss_ce': lambda_s * CE, 'loss_kl': lambda_t * KL[teacher || student]}``, scalars, averaged over
        the batch; without a teacher only ``loss_ce``.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
    """
    if student_logits.ndim != 2:
        raise ValueError(f'student_logits must be (N, C), found {tuple(student_logits.shape)}')
    student = student_logits.float()
    cross_entropy = F.cross_entropy(student, labels.float() if labels.is_floating_point() else labels)
    if teacher_logits is None:
        return {'loss_ce': cross_entropy}
    if temperature <= 0:
        raise ValueError(f'temperature must be positive, found {temperature}')
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f'teacher_logits {tuple(teacher_logits.shape)} do not fit '
            f'student_logits {tuple(student_logits.shape)}'
        )
    if lambda_s is None:
        lambda_s = 1 + 1 / temperature
    teacher_log = torch.log_softmax(teacher_logits.detach().float() / temperature, dim=1)
    student_log = torch.log_softmax(student / temperature if symmetric else student, dim=1)
    divergence = F.kl_div(student_log, teacher_log, reduction='batchmean', log_target=True)
    if symmetric and scale_by_t2:
        divergence = divergence * temperature**2
    return {'loss_ce': lambda_s * cross_entropy, 'loss_kl': lambda_t * divergence}


def top_score_difference(student_logits: Tensor, classes: int = 5) -> Tensor:
    """How much surer a network is of its first class than of the next ones: the term of a tolerant teacher.

    Minimised beside the cross entropy, it has "a few secondary classes emerge and complement the primary
    class" (Yang et al., *Training Deep Neural Networks in Generations: A More Tolerant Teacher Educates
    Better Students*, AAAI 2019; reference [49] of the paper), which they call the top score difference: the
    probability of the first class minus the mean of the next ``classes - 1``. Classes beyond are left alone,
    unlike in label smoothing. That publication could not be consulted for its numbers: five classes are our
    choice, and the weight of the term is an argument wherever it is used.

    Args:
        student_logits: ``(N, C)``, with gradient.
        classes: number of classes with the highest scores that take part, 2 to C.

    Returns:
        The difference, a scalar of 0 to 1, averaged over the batch; computed in float32.

    Raises:
        ValueError: ``classes`` is not within 2 to C.
    """
    if not 2 <= classes <= student_logits.shape[1]:
        raise ValueError(f'classes must be 2 to {student_logits.shape[1]}, found {classes}')
    scores = student_logits.float().softmax(1).topk(classes, dim=1).values
    return (scores[:, 0] - scores[:, 1:].mean(1)).mean()
