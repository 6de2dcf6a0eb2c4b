"""Exits of a network: a small head after an inner stage, for layers that teach one another and for cheaper encoders."""

from typing import NamedTuple

from torch import Tensor, nn


class ExitSignals(NamedTuple):
    """What an exit says of B images.

    Attributes:
        features: (B, F) pooled, before the last linear layer.
        outputs: (B, O) of that layer: class scores, or embeddings that are still to be scaled to unit length.
    """

    features: Tensor
    outputs: Tensor


class Exit(nn.Module):
    """Bottleneck, global average pooling, linear layer: what turns an inner stage's feature maps into features.

    The bottleneck (:func:`bottleneck`) takes feature maps of any height and width, 1 by 1 too.

    Args:
        channels: C of the stage's feature maps.
        features: F, those of the deepest stage where the two are to be compared.
        outputs: O, how many scores or dimensions.
        width: channels within the bottleneck; None: a quarter of ``features``, but no more than ``channels``.
        shrink: factor by which feature maps are averaged down first.

    Raises:
        ValueError: for a number below 1, naming it.

    >>> import torch
    >>> leaving = Exit(channels=8, features=32, outputs=5)
    >>> [tuple(tensor.shape) for tensor in leaving(torch.rand(2, 8, 7, 6))]
    [(2, 32), (2, 5)]
    """

    def __init__(
        self, *, channels: int, features: int, outputs: int, width: int | None = None, shrink: int = 1
    ) -> None:
        super().__init__()
        if outputs < 1:
            raise ValueError(f"outputs must be at least 1, got {outputs!r}")
        self.bottleneck = bottleneck(channels=channels, features=features, width=width, shrink=shrink)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(features, outputs)

    def forward(self, maps: Tensor) -> ExitSignals:
        """Return features and outputs of feature maps (B, C, H, W)."""
        features = self.pool(self.bottleneck(maps)).flatten(1)
        return ExitSignals(features, self.head(features))


def bottleneck(*, channels: int, features: int, width: int | None = None, shrink: int = 1) -> nn.Sequential:
    """Three convolutions, 1x1, 3x3 with stride 2, 1x1, each with batch norm and ReLU; before them, average pooling.

    He et al. 2016, https://arxiv.org/abs/1512.03385.

    Args:
        channels: of the feature maps that it is given.
        features: channels of those that it gives.
        width: channels within; None: a quarter of ``features``, but no more than ``channels``.
        shrink: size and stride of the pooling; 1: none.

    Raises:
        ValueError: for a number below 1, naming it.
    """
    width = max(1, min(features // 4, channels)) if width is None else width
    for name, value in (("channels", channels), ("features", features), ("width", width), ("shrink", shrink)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    return nn.Sequential(
        *([nn.AvgPool2d(shrink, ceil_mode=True)] if shrink > 1 else []),
        *_convolution(channels, width, 1),
        *_convolution(width, width, 3, stride=2),
        *_convolution(width, features, 1),
    )


def _convolution(inside: int, outside: int, size: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inside, outside, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


def inner_channels(stages: tuple[int, ...], stage: int) -> int:
    """The channels of an inner stage of a trunk.

    Args:
        stages: channels of each stage's feature maps, shallow to deep.
        stage: which one, counted from 0; not the deepest, which the network itself ends in.

    Raises:
        ValueError: if there is no such inner stage.

    >>> inner_channels((16, 32, 64), 1)
    32
    """
    if len(stages) < 2:
        raise ValueError("a backbone of one stage has no inner stage to leave from")
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage < len(stages) - 1:
        raise ValueError(f"stage must be an inner one, 0 to {len(stages) - 2}, got {stage!r}")
    return stages[stage]
