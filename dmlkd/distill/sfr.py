"""Shallow stages that learn the local features of the deep one: the feature loss of method C2, SFR."""

import math
from importlib.util import find_spec
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.distill.checks import positive, whole
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.posteriors import wide
from dmlkd.errors import UserError
from dmlkd.exits import inner_channels
from dmlkd.signals import Batch, Need, Signals


def transport_cost(
    *, shallow: Tensor, deep: Tensor, epsilon: float = 0.1, iterations: int = 100, tolerance: float = 1e-4
) -> Tensor:
    r"""Cost of moving an image's shallow descriptors to its deep ones: entropic optimal transport, uniform weights.

    With :math:`C_{jk} = \frac{1}{G} \lVert x_j - y_k \rVert^2` and :math:`\bar C` its mean, the plan of an image is

    .. math:: P = \arg\min_P \langle P, C \rangle - \epsilon \bar C\, H(P),
              \quad P \mathbf{1} = \mathbf{1} / n, \quad P^\top \mathbf{1} = \mathbf{1} / m

    and the loss the mean over images of :math:`\langle P, C \rangle`. Solved by POT (https://pythonot.github.io, Cuturi
    2013, https://arxiv.org/abs/1306.0895) in logarithms, all images at once. Nothing flows back to the deep
    descriptors, nor through the plan: the gradient of the shallow ones is :math:`\langle P, \partial C \rangle`, which
    is that of the minimum itself (envelope theorem, the weight :math:`\epsilon \bar C` being held), and no iteration
    need be kept for it. As epsilon is a share of the mean cost, the plan does not change when all features are scaled.

    Args:
        shallow: (B, n, G) descriptors, with gradient.
        deep: (B, m, G) descriptors of the same images.
        epsilon: > 0; near 0 each shallow descriptor goes to few deep ones, above 1 to all of them alike.
        iterations: at most so many of Sinkhorn's.
        tolerance: stop when the plans' row sums are off by less.

    Returns:
        The loss, a scalar >= 0, in float32 or wider.

    Raises:
        ValueError: if the shapes do not fit.
        UserError: if POT is not installed.
    """
    if shallow.ndim != 3 or deep.ndim != 3 or shallow.shape[::2] != deep.shape[::2] or not shallow.numel():
        raise ValueError(
            "shallow and deep must be (B, n, G) and (B, m, G) descriptors of the same images, got "
            f"{tuple(shallow.shape)} and {tuple(deep.shape)}"
        )
    check_installed()
    from ot import solve_batch

    with torch.autocast(shallow.device.type, enabled=False):
        x, y = wide(shallow), wide(deep).detach()
        squares = x.square().sum(dim=2)[:, :, None] + y.square().sum(dim=2)[:, None]
        costs = (squares - 2 * x @ y.mT).clamp(min=0) / x.shape[2]
        with torch.no_grad():
            means = costs.mean(dim=(1, 2), keepdim=True)
            shares = costs / means.clamp(min=torch.finfo(costs.dtype).tiny)
            plans = solve_batch(
                shares, reg=epsilon, max_iter=iterations, tol=tolerance, method="log_sinkhorn", grad="detach"
            ).plan
        loss: Tensor = (plans * costs).sum(dim=(1, 2)).mean()
        return loss


def local_descriptors(maps: Tensor, *, groups: int, side: int | None = None) -> Tensor:
    """Local descriptors of feature maps: a vector a place, each of its numbers the mean of a group of channels.

    Args:
        maps: (B, C, H, W).
        groups: G, of consecutive channels, equally many in each; divides C.
        side: larger maps are averaged to so many places in height and width; None: they are left.

    Returns:
        (B, H W, G).

    >>> local_descriptors(torch.arange(8.0).view(1, 4, 1, 2), groups=2)
    tensor([[[1., 5.],
             [2., 6.]]])
    """
    if side is not None and max(maps.shape[2:]) > side:
        maps = F.adaptive_avg_pool2d(maps, (min(side, maps.shape[2]), min(side, maps.shape[3])))
    images, channels = maps.shape[:2]
    return maps.reshape(images, groups, channels // groups, -1).mean(dim=2).mT


def check_installed() -> None:
    """Refuse to go on without POT.

    Raises:
        UserError: saying how to install it.
    """
    if find_spec("ot") is None:
        raise UserError("sfr needs POT for optimal transport: pip install 'dmlkd[ot]'")


class SelfFeatureRegularization(DistillationMethod):
    r"""Pull the local descriptors of an inner stage to those of the deepest: :func:`transport_cost` as a method.

    Fan and Hou 2021, https://arxiv.org/abs/2103.07350. Channels are brought to as many on both sides: groups of
    consecutive channels, averaged (:func:`local_descriptors`). With more shallow channels than deep ones, several
    shallow ones learn one deep one, as published; where the deep stage has more, as in a ResNet, its channels are
    averaged too.

    Args:
        stages: channels of each stage of the trunk, shallow to deep.
        stage: the one that learns, counted from 0; not the deepest. Name the term again for another.
        groups: G; None: as many as can be, the greatest common divisor of both stages' channels.
        side: larger feature maps are averaged to so many places in height and width.
        epsilon: > 0, weight of the entropy as a share of the mean cost.
        iterations: of Sinkhorn's at most, at least 1.

    Raises:
        ValueError: for a bad number, naming it, or if there is no such inner stage.
        UserError: if POT is not installed.
    """

    student_needs: ClassVar[frozenset[Need]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(
        self,
        *,
        stages: tuple[int, ...],
        stage: int = 1,
        groups: int | None = None,
        side: int = 8,
        epsilon: float = 0.1,
        iterations: int = 100,
    ) -> None:
        super().__init__()
        channels = math.gcd(inner_channels(stages, stage), stages[-1])
        self.stage = stage
        self.groups = channels if groups is None else whole("groups", groups)
        if channels % self.groups:
            raise ValueError(f"groups must divide the {channels} channels that both stages can have, got {groups}")
        self.side = whole("side", side)
        self.epsilon = positive("epsilon", epsilon)
        self.iterations = whole("iterations", iterations)
        check_installed()

    def forward(self, *, shallow: Tensor, deep: Tensor) -> Tensor:
        """Return the loss, a scalar, of feature maps (B, C, H, W) of two stages; no gradient reaches the deep one's."""
        small, target = (
            local_descriptors(maps, groups=self.groups, side=self.side) for maps in (shallow, deep.detach())
        )
        return transport_cost(shallow=small, deep=target, epsilon=self.epsilon, iterations=self.iterations)

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert student.stages is not None
        loss: Tensor = self(shallow=student.stages[self.stage], deep=student.stages[-1])
        return loss

    @override
    def extra_repr(self) -> str:
        return f"stage={self.stage}, groups={self.groups}, epsilon={self.epsilon}"
