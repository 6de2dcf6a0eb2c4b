"""Features pulled to a teacher's before the ReLU, by a margin for each channel: the second phase of method C3."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.posteriors import wide
from dmlkd.signals import Batch, Need, Signals

_FAR = 1e3  # standard deviations: further from 0, a mean is as if it were so far


def negative_part(*, mean: Tensor, std: Tensor) -> Tensor:
    r"""The expected value of a Gaussian where it is negative, :math:`E[X \mid X < 0]`.

    .. math:: \mu - \sigma \frac{\varphi(\mu / \sigma)}{\Phi(-\mu / \sigma)}

    Computed by logarithms, so that it is exact for a Gaussian that is hardly ever negative too; the published code
    takes -3 sigma where that is so in less than one of 1000 cases.

    Args:
        mean: mu, of any shape.
        std: sigma >= 0, of the same shape; 0: all of it is at the mean.

    Returns:
        At most 0, of the same shape, in float64.

    >>> negative_part(mean=torch.tensor([0.0, -5.0, 5.0]), std=torch.ones(3)).numpy().round(3)
    array([-0.798, -5.   , -0.187])
    """
    mean, std = mean.double(), std.double()
    ratio = (mean / std.clamp(min=1e-300)).clamp(-_FAR, _FAR)
    log_density = -(ratio.square() + math.log(2 * math.pi)) / 2
    hazard = (log_density - torch.special.log_ndtr(-ratio)).exp()
    expected: Tensor = torch.minimum(mean, _FAR * std) - std * hazard
    return expected


def margin_relu_loss(*, student: Sequence[Tensor], teacher: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    r"""How far features are from a teacher's through a margin-ReLU, over the stages of a network.

    With the target :math:`\hat t = \max(t, m_c)` of an element of channel c, the sum over the stages k of

    .. math:: \frac{1}{2^{\mathrm{last} - k}} \frac{1}{B} \sum \begin{cases} 0 & s \le \hat t \le 0 \\
              (s - \hat t)^2 & \text{else} \end{cases}

    over all elements of the feature maps: a partial squared distance, as what is below 0 in both is cut off by the
    ReLU anyway (Heo et al. 2019, https://arxiv.org/abs/1904.01866). In float32 or wider.

    Args:
        student: feature maps (B, C_k, H_k, W_k) before the ReLU of each stage, shallow to deep, with gradient.
        teacher: the teacher's; no gradient reaches them.
        margins: (C_k,) m, at most 0, of each stage.

    Raises:
        ValueError: if the numbers of stages or their shapes differ.

    >>> maps = torch.tensor([2.0, -1.0, -0.3]).view(1, 1, 1, 3)
    >>> aims = torch.tensor([1.0, -0.5, -4.0]).view(1, 1, 1, 3)
    >>> margin_relu_loss(student=[maps], teacher=[aims], margins=[torch.tensor([-0.8])])  # 1 + 0 + 0.25
    tensor(1.2500)
    """
    shapes = [[tuple(maps.shape) for maps in stages] for stages in (student, teacher)]
    if shapes[0] != shapes[1] or not shapes[0] or len(margins) != len(student):
        raise ValueError(
            f"student and teacher must have the same stages, a margin each, got {shapes[0]}, {shapes[1]} and "
            f"{len(margins)} margins"
        )
    losses = []
    for stage, (maps, aims, margin) in enumerate(zip(student, teacher, margins, strict=True)):
        with torch.autocast(maps.device.type, enabled=False):
            maps = wide(maps)
            target = torch.maximum(wide(aims).detach(), margin.to(maps)[:, None, None])
            counts = (maps > target) | (target > 0)
            partial = ((maps - target) * counts).square().sum() / len(maps)
            losses.append(partial / 2 ** (len(student) - 1 - stage))
    return torch.stack(losses).sum()


class MarginReLU(DistillationMethod):
    r"""Pull the student's feature maps to a teacher's before the last ReLU of each stage.

    See :func:`margin_relu_loss`. The margin of a channel is the expected value of what is negative there, a Gaussian of
    the mean and standard deviation of the teacher's last batch norm before the ReLU (:func:`negative_part`). Heo et
    al. 2019, https://arxiv.org/abs/1904.01866; as the second phase of visual priors, Zhao and Wen 2020,
    https://arxiv.org/abs/2008.00261, with the frozen self-supervised trunk that the student started from as the
    teacher.

    Student and teacher have stages of the same channels and sizes, so there is no 1x1 convolution between them, as the
    paper has: of a student that starts from its teacher, the loss begins at next to nothing.

    >>> from dmlkd import EmbeddingModel
    >>> needs = ("pre_activations", "pre_activation_norms")
    >>> said = EmbeddingModel("convnet4", dim=8, in_channels=1).eval().signals(torch.rand(2, 1, 8, 8), needs)
    >>> MarginReLU()(student=said.pre_activations, teacher=said.pre_activations, norms=said.pre_activation_norms) >= 0
    tensor(True)
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"pre_activations"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset({"pre_activations", "pre_activation_norms"})

    def forward(self, *, student: Sequence[Tensor], teacher: Sequence[Tensor], norms: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: (B, C_k, H_k, W_k) before the last ReLU of each stage, shallow to deep.
            teacher: the teacher's.
            norms: (B, 2, C_k) each, the same for all images: mean and standard deviation of the teacher's channels.
        """
        margins = [negative_part(mean=norm[0, 0], std=norm[0, 1]) for norm in norms]
        return margin_relu_loss(student=student, teacher=teacher, margins=margins)

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert student.pre_activations is not None
        assert teacher is not None
        assert teacher.pre_activations is not None
        assert teacher.pre_activation_norms is not None
        loss: Tensor = self(
            student=student.pre_activations, teacher=teacher.pre_activations, norms=teacher.pre_activation_norms
        )
        return loss
