"""Transforms by name: each gives a training and a test pipeline on uint8 (C, H, W) tensors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

Transform = Callable[[Tensor], Tensor]


class Transforms(NamedTuple):
    """What is done to an image in training, and what in testing."""

    train: Transform
    test: Transform


# Per-channel mean and standard deviation of ImageNet, which torchvision's published weights expect.
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def plain(*, image_size: int, channels: int) -> Transforms:
    """Resize to a square; the same for training and testing.

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    pipeline = v2.Compose([_resize(image_size), *_to_float(channels)])
    return Transforms(pipeline, pipeline)


def handwriting(*, image_size: int, channels: int) -> Transforms:
    """Small rotations (15 degrees), shifts (10 %), scalings (10 %) and shears (10 degrees); no flip.

    What moves in from outside the image has the colour of its top left pixel.

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    train = v2.Compose([_resize(image_size), v2.ToDtype(torch.float32, scale=True), _affine, _normalize(channels)])
    return Transforms(train, plain(image_size=image_size, channels=channels).test)


def published(*, image_size: int, channels: int) -> Transforms:
    """The published recipe: RandomResizedCrop and flip; Resize and CenterCrop in the proportion 256 to 224.

    Args:
        image_size: pixels a side of what the network sees, 224 as published.
        channels: colour channels.
    """
    train = v2.Compose(
        [v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip(), *_to_float(channels)]
    )
    test = v2.Compose(
        [v2.Resize(round(image_size * 256 / 224), antialias=True), v2.CenterCrop(image_size), *_to_float(channels)]
    )
    return Transforms(train, test)


def _resize(size: int) -> v2.Transform:
    return v2.Resize((size, size), antialias=True)


_MOVE = v2.RandomAffine(
    degrees=15, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=10, interpolation=v2.InterpolationMode.BILINEAR
)


def _affine(image: Tensor) -> Tensor:
    # Filled with 0 on an image whose paper is 0: a fill colour would leave a dark fringe, which torchvision's
    # bilinear fill draws by weighting the border twice.
    paper = image[:, :1, :1]
    moved: Tensor = _MOVE(image - paper) + paper
    return moved


def _to_float(channels: int) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), _normalize(channels)]


def _normalize(channels: int) -> v2.Transform:
    mean, std = _IMAGENET if channels == 3 else ([0.5] * channels, [0.5] * channels)
    return v2.Normalize(mean, std)
