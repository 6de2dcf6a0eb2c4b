"""The formulas of the methods, as pure functions of tensors."""

import torch
from torch import Tensor
from torch.nn import functional as F


def listwise_kl(
    *,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    temperature: float = 1.0,
    include_self: bool = True,
    negative_scale: float = 1.0,
) -> Tensor:
    r"""KL divergence from the teacher's to the student's similarity lists within a batch.

    .. math:: \frac{\tau^2}{B} \sum_i \mathrm{KL}\bigl(\mathrm{softmax}_j(\tilde S_{ij} / \tau)
              \,\|\, \mathrm{softmax}_j(S_{ij} / \tau)\bigr), \qquad S = z z^\top

    the distillation term of Zeng et al. 2022 (https://arxiv.org/abs/2206.08880). Computed in float32 or wider, also
    under autocast. Nothing flows back to the teacher.

    Args:
        student: (B, D) embeddings of unit length.
        teacher: (B, D') embeddings of unit length of the same images in the same order; D' may differ from D.
        labels: (B,) class labels; needed if ``negative_scale`` is not 1.
        temperature: tau > 0; the loss is multiplied by its square, so that the gradient keeps its size.
        include_self: whether row i's list holds the pair (i, i).
        negative_scale: factor on the similarities of pairs with different labels, in both lists.

    Returns:
        The loss, a scalar >= 0 (up to rounding); exactly 0 when both have the same similarities.

    Raises:
        ValueError: if the shapes do not fit, or labels are needed and missing.

    >>> z = F.normalize(torch.eye(3) + 0.5, dim=1)
    >>> listwise_kl(student=z, teacher=z).item()
    0.0
    """
    _check_lists(student, teacher, labels, include_self, negative_scale)
    with torch.autocast(student.device.type, enabled=False):
        scaled_labels = labels if negative_scale != 1 else None
        student_log = _log_lists(student, scaled_labels, temperature, include_self, negative_scale)
        with torch.no_grad():
            teacher_log = _log_lists(teacher, scaled_labels, temperature, include_self, negative_scale)
        teacher_log = teacher_log.to(student_log.dtype)
        return temperature**2 * F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def _log_lists(
    z: Tensor, labels: Tensor | None, temperature: float, include_self: bool, negative_scale: float
) -> Tensor:
    z = z if z.dtype == torch.float64 else z.float()
    similarity = z @ z.T
    if labels is not None:
        similarity = torch.where(labels[:, None] == labels, similarity, negative_scale * similarity)
    if not include_self:
        similarity = without_diagonal(similarity)
    return F.log_softmax(similarity / temperature, dim=1)


def without_diagonal(square: Tensor) -> Tensor:
    """The (B, B - 1) matrix left when a (B, B) one loses its diagonal.

    >>> without_diagonal(torch.arange(9).view(3, 3)).tolist()
    [[1, 2], [3, 5], [6, 7]]
    """
    size = len(square)
    return square.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def _check_lists(
    student: Tensor, teacher: Tensor, labels: Tensor | None, include_self: bool, negative_scale: float
) -> None:
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            "student and teacher must be (B, D) embeddings of the same B images, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if len(student) < (1 if include_self else 2):
        raise ValueError(f"a list without its own image needs a batch of at least 2, got {len(student)}")
    if negative_scale != 1 and labels is None:
        raise ValueError(f"negative_scale = {negative_scale} needs labels, got None")
    if labels is not None and labels.shape != student.shape[:1]:
        raise ValueError(f"labels must have shape ({len(student)},), got {tuple(labels.shape)}")
