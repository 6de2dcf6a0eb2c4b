"""The formulas of similarity lists, as pure functions of tensors.

Nothing here holds a B x B matrix: losses and their gradients are summed up over blocks of rows.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from dmlkd.distill.checks import one_of

Comparison = Literal["kl", "reverse_kl", "js", "squared"]
"""How the student's lists are compared with the teacher's; defined in :func:`listwise_divergence`."""

ListComparison = Literal["kl", "reverse_kl", "js"]
"""The comparisons of two lists as distributions."""

_ENTRIES = 2**22  # of a block of rows, unless the caller says how many rows: 16 MiB in float32


def listwise_divergence(
    *,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    rows: Tensor | None = None,
    temperature: float = 1.0,
    include_self: bool = True,
    negative_scale: float = 1.0,
    comparison: Comparison = "kl",
    block: int | None = None,
) -> Tensor:
    r"""How far the student's similarity lists within a batch are from the teacher's.

    With :math:`S = z z^\top` and the lists :math:`s_i = \mathrm{softmax}_j(S_{ij} / \tau)`, :math:`t_i` likewise of
    the teacher, the mean over the rows i of

    - ``"kl"``: :math:`\tau^2\, \mathrm{KL}(t_i \,\|\, s_i)`, the distillation term of Zeng et al. 2022
      (https://arxiv.org/abs/2206.08880);
    - ``"reverse_kl"``: :math:`\tau^2\, \mathrm{KL}(s_i \,\|\, t_i)`;
    - ``"js"``: :math:`\frac{\tau^2}{2} (\mathrm{KL}(t_i \,\|\, m_i) + \mathrm{KL}(s_i \,\|\, m_i))` with
      :math:`m_i = (s_i + t_i) / 2`;
    - ``"squared"``: the mean over the list's j of :math:`(S_{ij} - \tilde S_{ij})^2`, in which :math:`\tau` has no
      part. At high temperature ``"kl"`` tends to half of it, less what is the same for the whole row.

    Computed in float32 or wider, also under autocast. Nothing flows back to the teacher. The gradient is computed with
    the value, in blocks of rows, and is a constant to whatever differentiates it again.

    Args:
        student: (B, D) embeddings of unit length.
        teacher: (B, D') embeddings of unit length of the same images in the same order; D' may differ from D.
        labels: (B,) class labels; needed if ``negative_scale`` is not 1.
        rows: (B,) indices of the images in their data set. Where one image was drawn twice, neither list of its two
            places holds the other place. None: every place is taken for another image.
        temperature: tau > 0; the loss is multiplied by its square, so that the gradient keeps its size.
        include_self: whether row i's list holds the pair (i, i).
        negative_scale: factor on the similarities of pairs with different labels, in both lists.
        comparison: "kl", "reverse_kl", "js" or "squared".
        block: rows of the B x B matrices that are in memory at a time; None: as many as have 4 Mi entries. The result
            is the same up to rounding.

    Returns:
        The loss, a scalar >= 0 (up to rounding), 0 when both have the same similarities. A row whose list is empty
        adds 0.

    Raises:
        ValueError: if the shapes do not fit, labels are needed and missing, or there is no such comparison.

    >>> z = torch.nn.functional.normalize(torch.eye(3) + 0.5, dim=1)
    >>> listwise_divergence(student=z, teacher=z).item()
    0.0
    """
    _check_pair(student, teacher, "(B, D) embeddings of the same B images")
    one_of("comparison", comparison, get_args(Comparison))
    _check_options(student, labels, rows, include_self, block)
    if negative_scale != 1 and labels is None:
        raise ValueError(f"negative_scale = {negative_scale} needs labels, got None")
    options = _Options(temperature, include_self, negative_scale, comparison, block)
    return _divergence(student, _wide(teacher), None, labels if negative_scale != 1 else None, rows, options)


def divergence_from_lists(
    *,
    student: Tensor,
    target: Tensor,
    rows: Tensor | None = None,
    temperature: float = 1.0,
    include_self: bool = True,
    comparison: ListComparison = "kl",
    block: int | None = None,
) -> Tensor:
    """How far the student's similarity lists are from given lists: :func:`listwise_divergence` with these as t.

    Args:
        student: (B, D) embeddings of unit length.
        target: (B, B) lists: each row is >= 0 and sums to 1, or is 0 throughout and adds nothing to the loss. It is 0
            where the options leave a pair out.
        rows: as there.
        temperature: of the student's lists, and in the factor.
        include_self: as there.
        comparison: "kl", "reverse_kl" or "js".
        block: as there.

    Returns:
        The loss, a scalar >= 0 (up to rounding).

    Raises:
        ValueError: if the shapes do not fit, or there is no such comparison of lists.
    """
    _check_pair(student, target, "(B, D) embeddings and (B, B) lists")
    if target.shape[1] != len(target):
        raise ValueError(f"target must have shape ({len(target)}, {len(target)}), got {tuple(target.shape)}")
    one_of("comparison", comparison, get_args(ListComparison))
    _check_options(student, None, rows, include_self, block)
    options = _Options(temperature, include_self, 1.0, comparison, block)
    return _divergence(student, None, target, None, rows, options)


def left_out(size: int, *, part: slice, include_self: bool, rows: Tensor | None, device: torch.device) -> Tensor | None:
    """Which pairs are not in the lists of some rows: True where they are not, None if all are.

    Args:
        size: B.
        part: the rows asked for.
        include_self: whether row i's list holds the pair (i, i).
        rows: (B,) indices of the images in their data set, or None.
        device: where the answer goes.

    >>> left_out(3, part=slice(0, 3), include_self=True, rows=torch.tensor([5, 7, 5]), device=torch.device("cpu"))
    tensor([[False, False,  True],
            [False, False, False],
            [ True, False, False]])
    """
    if rows is None and include_self:
        return None
    if rows is None:
        mask = torch.zeros(min(part.stop, size) - part.start, size, dtype=torch.bool, device=device)
    else:
        mask = rows[part, None] == rows
    mask.diagonal(offset=part.start).fill_(not include_self)
    return mask


class _Options(NamedTuple):
    temperature: float
    include_self: bool
    negative_scale: float
    comparison: Comparison
    block: int | None


def _divergence(
    student: Tensor,
    teacher: Tensor | None,
    target: Tensor | None,
    labels: Tensor | None,
    rows: Tensor | None,
    options: _Options,
) -> Tensor:
    with torch.autocast(student.device.type, enabled=False):
        loss: Tensor = _ListDivergence.apply(
            _wide(student),
            None if teacher is None else teacher.detach(),
            None if target is None else target.detach(),
            labels,
            rows,
            options,
            student.requires_grad and torch.is_grad_enabled(),
        )
    return loss


class _ListDivergence(torch.autograd.Function):
    """The loss, and in the same pass its gradient with respect to the student's embeddings."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        target: Tensor | None,
        labels: Tensor | None,
        rows: Tensor | None,
        options: _Options,
        with_gradient: bool,
    ) -> Tensor:
        size = len(student)
        block = options.block or max(1, _ENTRIES // size)
        squared = options.comparison == "squared"
        tau = 1.0 if squared else options.temperature
        may_be_empty = rows is not None and not options.include_self
        loss = student.new_zeros(())
        gradient = torch.zeros_like(student) if with_gradient else None
        for start in range(0, size, block):
            part = slice(start, min(start + block, size))
            mask = left_out(size, part=part, include_self=options.include_self, rows=rows, device=student.device)
            scale = None
            if labels is not None:
                same = labels[part, None] == labels
                scale = torch.full_like(same, options.negative_scale, dtype=student.dtype).masked_fill_(same, 1)
            similarity = _similarity(student, part, scale)
            if squared:
                assert teacher is not None
                earlier = _similarity(teacher, part, scale)
                value, slope = _squared(similarity, earlier.to(similarity.dtype), mask)
            else:
                if teacher is not None:
                    earlier = _similarity(teacher, part, scale)
                    t, log_t = _lists(earlier, mask, options.temperature, may_be_empty)
                else:
                    assert target is not None
                    t = target[part].to(similarity.dtype)
                    log_t = t.clamp_min(torch.finfo(t.dtype).tiny).log_()
                s, log_s = _lists(similarity, mask, options.temperature, may_be_empty)
                value, slope = _compared(options.comparison, s, log_s, t.to(s.dtype), log_t.to(s.dtype))
            loss = loss + value
            if gradient is not None:
                if scale is not None:
                    slope = slope * scale
                # S = z z^T: the rows of a block have a gradient as rows, and all images one as columns.
                gradient[part].addmm_(slope, student)
                gradient.addmm_(slope.T, student[part])
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(tau / size))
        return loss * (tau**2 / size)

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream[0] * gradient, None, None, None, None, None, None


def _similarity(z: Tensor, part: slice, scale: Tensor | None) -> Tensor:
    similarity = z[part] @ z.T
    return similarity if scale is None else similarity.mul_(scale)


def _lists(similarity: Tensor, mask: Tensor | None, temperature: float, may_be_empty: bool) -> tuple[Tensor, Tensor]:
    """Each row as a distribution, and its logarithm: 0, and a finite number, where the mask leaves a pair out."""
    similarity = similarity.div_(temperature)
    if mask is not None:
        # Not -inf: the difference of two of these is 0, and 0 times one of them too.
        similarity = similarity.masked_fill_(mask, torch.finfo(similarity.dtype).min / 2)
    log = torch.log_softmax(similarity, dim=1)
    lists = log.exp()
    if mask is not None and may_be_empty:  # the softmax of an empty row is uniform
        lists = lists.masked_fill_(mask, 0)
    return lists, log


def _compared(comparison: Comparison, s: Tensor, log_s: Tensor, t: Tensor, log_t: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the rows, and its gradient with respect to what the student's softmax is of."""
    if comparison == "kl":
        return t.mul(log_t - log_s).sum(), s - t
    if comparison == "reverse_kl":
        ratio = log_s - log_t
        row = (s * ratio).sum(1, keepdim=True)
        return row.sum(), s * (ratio - row)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    ratio = log_s - log_m
    row = (s * ratio).sum(1, keepdim=True)
    return ((t * (log_t - log_m)).sum() + row.sum()) / 2, s * (ratio - row) / 2


def _squared(similarity: Tensor, earlier: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum over the rows of the mean squared difference, and its gradient with respect to the similarities."""
    difference = similarity.sub_(earlier)
    if mask is None:
        return difference.square().sum() / difference.shape[1], difference * (2 / difference.shape[1])
    difference = difference.masked_fill_(mask, 0)
    mean = difference / (~mask).sum(1, keepdim=True).clamp_min(1)
    return (difference * mean).sum(), 2 * mean


def _wide(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


def _check_pair(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(f"student and teacher must be {what}, got {tuple(student.shape)} and {tuple(teacher.shape)}")


def _check_options(
    student: Tensor, labels: Tensor | None, rows: Tensor | None, include_self: bool, block: int | None
) -> None:
    if len(student) < (1 if include_self else 2):
        raise ValueError(f"a list without its own image needs a batch of at least 2, got {len(student)}")
    for name, value in (("labels", labels), ("rows", rows)):
        if value is not None and value.shape != student.shape[:1]:
            raise ValueError(f"{name} must have shape ({len(student)},), got {tuple(value.shape)}")
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
