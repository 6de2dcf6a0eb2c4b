"""An adversary that tells a teacher's logits from the student's: the part of AI-KD (method B7) that is its own."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization
from typing_extensions import override

from dmlkd.distill.checks import whole
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.posteriors import check_logits, wide
from dmlkd.signals import Batch, Need, Signals


class AdversaryLosses(NamedTuple):
    """What :func:`adversarial_losses` gives.

    Attributes:
        student: trains the student alone.
        discriminator: trains the discriminator alone.
    """

    student: Tensor
    discriminator: Tensor


def adversarial_losses(*, discriminator: nn.Module, student: Tensor, teacher: Tensor) -> AdversaryLosses:
    r"""What student and discriminator D each have to lose.

    .. math:: L_\mathrm{student} = -\frac{1}{B} \sum_i \log \bar D(o_i), \qquad
              L_D = -\frac{1}{2B} \sum_i \bigl[\log D(\tilde o_i) + \log(1 - D(\bar o_i))\bigr]

    A bar stands over what is held fixed: the first has no gradient for D, the second none for the student. So the step
    of an optimiser that holds both, on the sum of both, is one step of each side: the student's against D as it was,
    then D's on the logits that the student's step was taken from. Computed in float32 or wider.

    Args:
        discriminator: from logits (B, C) to (B, 1), the log-odds of D that they are the teacher's.
        student: (B, C) logits o.
        teacher: (B, C) logits; nothing flows back to them.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_logits(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        fooled = functional_call(discriminator, fixed, (wide(student),))
        theirs, mine = discriminator(torch.cat([wide(teacher), wide(student)]).detach()).chunk(2)
        # -log D and -log(1 - D) of log-odds a are softplus(-a) and softplus(a).
        return AdversaryLosses(
            student=F.softplus(-fooled).mean(),
            discriminator=(F.softplus(-theirs).mean() + F.softplus(mine).mean()) / 2,
        )


class _UnitNorm(nn.Module):
    """A matrix divided by its largest singular value."""

    def forward(self, weight: Tensor) -> Tensor:
        largest: Tensor = torch.linalg.eigvalsh(weight @ weight.T)[-1].sqrt()
        return weight / largest


def _bounded(layer: nn.Linear) -> nn.Linear:
    register_parametrization(layer, "weight", _UnitNorm())
    return layer


class Adversary(DistillationMethod):
    """Let the student pass for its teacher with a discriminator that learns to tell them: :func:`adversarial_losses`.

    The adversary of our reading of AI-KD (Kim et al. 2022, https://arxiv.org/abs/2211.10938); its other two parts are
    terms of their own, :func:`~dmlkd.distill.ps_kd` taught by the previous epoch and
    :class:`~dmlkd.distill.PosteriorDistillation` taught by a finished run. D is an MLP of one hidden layer on the
    logits. It is part of the method: trained like the metric loss's class weights, in the checkpoint, and not in the
    exported model. It learns while the term has weight, and the weight is on both losses.

    D has spectral normalisation (Miyato et al. 2018, https://arxiv.org/abs/1802.05957) by exact singular values: its
    log-odds move no faster than the logits, so the pull on an image's logits has length 1 / B at most, as that of
    cross-entropy has about. Without it D wins, and the student learns nothing but to follow it (docs/methods/ai-kd.md).

    Args:
        classes: C.
        hidden: units of D's hidden layer.

    Raises:
        ValueError: for a bad number, naming it.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"logits"})

    def __init__(self, *, classes: int, hidden: int = 128) -> None:
        super().__init__()
        width = whole("hidden", hidden)
        self.discriminator = nn.Sequential(
            _bounded(nn.Linear(whole("classes", classes), width)), nn.LeakyReLU(0.2), _bounded(nn.Linear(width, 1))
        )

    def forward(self, *, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum of both losses, a scalar, of logits (B, C)."""
        losses = adversarial_losses(discriminator=self.discriminator, student=student, teacher=teacher)
        return losses.student + losses.discriminator

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert teacher is not None
        assert teacher.logits is not None
        assert student.logits is not None
        loss: Tensor = self(student=student.logits, teacher=teacher.logits)
        return loss
