"""Backbones by name: a small network of our own for small images, and torchvision's classification networks."""

from typing import Any

import torchvision
from torch import nn

from dmlkd.errors import ConfigError, suggestion
from dmlkd.models.stages import staged
from dmlkd.models.trunk import Trunk


def convnet4(*, in_channels: int = 3, width: int = 32) -> Trunk:
    """Four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling: for images of about 8 to 84 pixels.

    Blocks that would pool a single row or column away pool less (``ceil_mode``), so images down to 1 pixel pass.

    Args:
        in_channels: colour channels of the images.
        width: channels of every block.

    Raises:
        ConfigError: unless both are at least 1.
    """
    for name, value in (("in_channels", in_channels), ("width", width)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    stages = nn.Sequential(
        *(
            nn.Sequential(
                nn.Conv2d(in_channels if block == 0 else width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2, ceil_mode=True),
            )
            for block in range(4)
        )
    )
    return Trunk(stages, channels=[width] * len(stages))


_OWN = {"convnet4": convnet4}

# These return a tuple while training, or end in a convolution, and so have no features to take.
_UNSUITED = frozenset({"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"})


def backbone_names() -> list[str]:
    """Every valid name, ours first, then torchvision's."""
    theirs = torchvision.models.list_models(module=torchvision.models)
    return [*_OWN, *sorted(set(theirs) - _UNSUITED)]


def build_trunk(name: str, *, weights: str | None = None, in_channels: int = 3, **arguments: Any) -> Trunk:
    """Build a backbone without its classifier.

    The feature maps of a ResNet are pooled by the embedding model. Every other network of torchvision runs as its
    authors wrote it, pooling included, up to its last linear layer. All are in stages: docs/methods/byot.md.

    Args:
        name: one of :func:`backbone_names`.
        weights: torchvision's name of a set of weights, such as "IMAGENET1K_V2" or "DEFAULT"; None: random.
        in_channels: colour channels of the images; torchvision's networks take 3.
        arguments: further arguments of one of our own backbones, such as ``width``.

    Raises:
        ConfigError: for an unknown backbone or set of weights, or an argument that the backbone does not take.
    """
    if name in _OWN:
        if weights is not None:
            raise ConfigError(f"backbone {name!r} has no published weights, got weights={weights!r}; leave it out")
        unknown = sorted(set(arguments) - {"width"})
        if unknown:
            raise ConfigError(f"backbone {name!r} takes no {unknown[0]!r}{suggestion(unknown[0], ['width'])}")
        return _OWN[name](in_channels=in_channels, **arguments)
    if name not in backbone_names():
        raise ConfigError(f"unknown backbone {name!r}{suggestion(name, backbone_names())}")
    if arguments:
        raise ConfigError(f"backbone {name!r} takes no {sorted(arguments)[0]!r}")
    if in_channels != 3:
        raise ConfigError(f"backbone {name!r} takes images of 3 channels, got {in_channels}; set data.channels to 3")
    return staged(_torchvision_network(name, weights))


def _torchvision_network(name: str, weights: str | None) -> nn.Module:
    if weights is not None:
        valid = [w.name for w in torchvision.models.get_model_weights(name)]
        if weights not in (*valid, "DEFAULT"):
            raise ConfigError(f"backbone {name!r} has no weights {weights!r}{suggestion(weights, [*valid, 'DEFAULT'])}")
    network: nn.Module = torchvision.models.get_model(name, weights=weights)
    return network
