"""Subclass distillation: method B9."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import positive
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.posteriors import posterior_divergence, wide
from dmlkd.signals import Batch, Need, Signals


def subclass_spread(subclass_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""How little the images of a batch differ in their subclass logits.

    .. math:: L_\mathrm{aux} = -\frac{1}{B} \sum_i \log
              \frac{\exp(\hat v_i \cdot \hat v_i / T)}{\frac{1}{B} \sum_j \exp(\hat v_i \cdot \hat v_j / T)}

    with :math:`\hat v_i` the C K subclass logits of image i, each with its mean over the batch taken off and divided by
    its standard deviation, as batch norm does, and then scaled to unit length. Gradient flows through mean and
    deviation too. Computed in float32 or wider. At most 0, which it is when all images
    are alike (Mueller et al. 2020, https://arxiv.org/abs/2002.03936).

    Args:
        subclass_logits: (B, C, K), of at least 2 images.
        temperature: T > 0.

    Raises:
        ValueError: if the shape does not fit.

    >>> print(f"{subclass_spread(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])):.3f}")
    -0.566
    """
    if subclass_logits.ndim != 3 or len(subclass_logits) < 2:
        raise ValueError(
            f"subclass_logits must be (B, C, K) of at least 2 images, got shape {tuple(subclass_logits.shape)}"
        )
    with torch.autocast(subclass_logits.device.type, enabled=False):
        flat = wide(subclass_logits).flatten(1)
        standardised = F.batch_norm(flat, None, None, training=True)
        directions = F.normalize(standardised, dim=1)
        products = directions @ directions.t() / temperature
        return (products.logsumexp(dim=1) - products.diagonal()).mean() - math.log(len(flat))


class SubclassSpread(DistillationMethod):
    """Keep a class's subclasses apart while a teacher with subclasses is trained: :func:`subclass_spread` as a method.

    It has no teacher, and is a loss below 0. Without it, nothing says what the subclasses of a class are for.

    Args:
        temperature: T > 0.

    Raises:
        ValueError: for a bad temperature.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"subclass_logits"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, *, student: Tensor) -> Tensor:
        """Return the loss, a scalar, of subclass logits (B, C, K)."""
        return subclass_spread(student, temperature=self.temperature)

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert student.subclass_logits is not None
        loss: Tensor = self(student=student.subclass_logits)
        return loss

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class SubclassDistillation(DistillationMethod):
    r"""Pull the student's posterior over all subclasses of all classes to the teacher's.

    .. math:: L = \frac{T^2}{B} \sum_i \mathrm{KL}\bigl(\mathrm{softmax}_{ck}(\tilde o_{ick} / T) \,\|\,
              \mathrm{softmax}_{ck}(o_{ick} / T)\bigr)

    Mueller et al. 2020, https://arxiv.org/abs/2002.03936. With few classes a class posterior says little, while that
    over C K subclasses says as much as one of C K classes. The teacher is a finished run trained with
    :class:`SubclassSpread`, with the same number of subclasses.

    Args:
        temperature: T > 0.

    Raises:
        ValueError: for a bad temperature.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"subclass_logits"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"subclass_logits"})

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, *, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar, of subclass logits (B, C, K); no gradient reaches the teacher's.

        Raises:
            ValueError: if the shapes differ.
        """
        if student.ndim != 3 or student.shape != teacher.shape:
            raise ValueError(
                f"student and teacher must be (B, C, K) subclass logits of as many subclasses, got "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        return posterior_divergence(
            student=student.flatten(1), teacher=teacher.flatten(1), temperature=self.temperature
        )

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert teacher is not None
        assert teacher.subclass_logits is not None
        assert student.subclass_logits is not None
        loss: Tensor = self(student=student.subclass_logits, teacher=teacher.subclass_logits)
        return loss

    @override
    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
