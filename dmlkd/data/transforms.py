"""Transforms by name: each gives a training and a test pipeline on uint8 (C, H, W) tensors.

A pipeline is made of steps that can be written down, so that a saved model knows exactly how its images are prepared.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from dmlkd.errors import DataError, suggestion

Transform = Callable[[Tensor], Tensor]
Step = Mapping[str, Any]
"""``op``, a key of :data:`OPERATIONS`, and the arguments of that operation."""


class Pipeline:
    """Steps applied one after the other.

    Args:
        steps: what to do, in order.

    Attributes:
        steps: the same, as JSON takes them.
        varies: whether a step is random; one that is not can be applied to a whole batch at once.

    Raises:
        DataError: for an unknown operation or arguments that it refuses.

    >>> Pipeline([{"op": "resize", "size": [8, 8]}, {"op": "to_float"}])(torch.zeros(1, 5, 6, dtype=torch.uint8)).shape
    torch.Size([1, 8, 8])
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = [dict(step) for step in steps]
        self.varies = any(step.get("op") in _RANDOM for step in steps)
        fresh = [False, *(step.get("op") == "to_float" for step in self.steps)]
        self._made = [_operation(step, fresh=after) for step, after in zip(self.steps, fresh, strict=False)]

    def __call__(self, image: Tensor) -> Tensor:
        """Apply the steps to one image (C, H, W); without random steps also to a batch (B, C, H, W)."""
        for operation in self._made:
            image = operation(image)
        return image

    def __repr__(self) -> str:
        return f"Pipeline({self.steps})"


class Transforms(NamedTuple):
    """What is done to an image in training, and what in testing.

    Attributes:
        train: for training.
        test: for testing.
    """

    train: Transform
    test: Transform

    @property
    def square(self) -> int:
        """Pixels a side of a square that both begin by resizing to, which can be done once and kept; 0: they do not."""
        first = [pipeline.steps[:1] if isinstance(pipeline, Pipeline) else [] for pipeline in self]
        size = first[0][0].get("size") if first[0] else None
        return size[0] if isinstance(size, list) and first == [[_square(size[0])]] * 2 else 0


# Per-channel mean and standard deviation of ImageNet, which torchvision's published weights expect.
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def plain(*, image_size: int, channels: int) -> Transforms:
    """Resize to a square; the same for training and testing.

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    pipeline = Pipeline([_square(image_size), *_to_float(channels)])
    return Transforms(pipeline, pipeline)


def handwriting(*, image_size: int, channels: int) -> Transforms:
    """Small rotations (15 degrees), shifts (10 %), scalings (10 %) and shears (10 degrees); no flip.

    What moves in from outside the image has the colour of its top left pixel.

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    to_float, normalize = _to_float(channels)
    move = {"op": "affine_on_paper", "degrees": 15, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 10}
    train = Pipeline([_square(image_size), to_float, move, normalize])
    return Transforms(train, plain(image_size=image_size, channels=channels).test)


def published(*, image_size: int, channels: int) -> Transforms:
    """The published recipe: RandomResizedCrop and flip; Resize and CenterCrop in the proportion 256 to 224.

    Args:
        image_size: pixels a side of what the network sees, 224 as published.
        channels: colour channels.
    """
    return _crops(image_size, channels, "bilinear")


def bicubic(*, image_size: int, channels: int) -> Transforms:
    """The published recipe with bicubic interpolation.

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    return _crops(image_size, channels, "bicubic")


def color_jitter(*, image_size: int, channels: int) -> Transforms:
    """As ``bicubic``, with brightness, contrast and saturation changed by up to 25 %.

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    return _crops(image_size, channels, "bicubic", before=[_JITTER])


def rand_augment(*, image_size: int, channels: int) -> Transforms:
    """As ``bicubic``, with two random operations of RandAugment at magnitude 9 (https://arxiv.org/abs/1909.13719).

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    return _crops(image_size, channels, "bicubic", before=[_RAND_AUGMENT])


def random_erasing(*, image_size: int, channels: int) -> Transforms:
    """As ``bicubic``, with a rectangle of noise in a quarter of the images (https://arxiv.org/abs/1708.04896).

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    return _crops(image_size, channels, "bicubic", after=[_ERASING])


def modern(*, image_size: int, channels: int) -> Transforms:
    """As ``bicubic``, with RandAugment and random erasing.

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    return _crops(image_size, channels, "bicubic", before=[_RAND_AUGMENT], after=[_ERASING])


def contrastive(*, image_size: int, channels: int) -> Transforms:
    """MoCo v2's augmentation (https://arxiv.org/abs/2003.04297), for views of one image that are told from others.

    Crops of 20 to 100 % of the area, flips; colours changed by 40 % in 80 % of the images (of RGB the hue by 10 %), no
    colour in 20 %, blur in 50 %.

    Args:
        image_size: pixels a side of what the network sees.
        channels: colour channels.
    """
    jitter = {"op": "color_jitter", "p": 0.8, "brightness": 0.4, "contrast": 0.4}
    colours = [jitter]
    if channels == 3:
        colours = [jitter | {"saturation": 0.4, "hue": 0.1}, {"op": "grey", "p": 0.2}]
    blur = {"op": "blur", "p": 0.5, "kernel_size": 2 * round(image_size / 20) + 1, "sigma": [0.1, 2.0]}
    return _crops(image_size, channels, "bilinear", scale=(0.2, 1.0), before=[*colours, blur])


_JITTER = {"op": "color_jitter", "brightness": 0.25, "contrast": 0.25, "saturation": 0.25}
_RAND_AUGMENT = {"op": "rand_augment", "num_ops": 2, "magnitude": 9}
_ERASING = {"op": "random_erasing", "p": 0.25, "value": "random"}


def _crops(
    size: int,
    channels: int,
    interpolation: str,
    *,
    scale: tuple[float, float] | None = None,
    before: Sequence[Step] = (),
    after: Sequence[Step] = (),
) -> Transforms:
    """Random crops and flips in training, the middle in testing; more steps before and after the change to floats."""
    crop: dict[str, Any] = {"op": "random_resized_crop", "size": size, "interpolation": interpolation}
    if scale is not None:
        crop["scale"] = list(scale)
    resize = {"op": "resize", "size": round(size * 256 / 224), "interpolation": interpolation}
    train: list[Step] = [crop, {"op": "flip"}, *before, *_to_float(channels), *after]
    return Transforms(Pipeline(train), Pipeline([resize, {"op": "center_crop", "size": size}, *_to_float(channels)]))


def _square(size: int) -> dict[str, Any]:
    return {"op": "resize", "size": [size, size], "interpolation": "bilinear"}


def _to_float(channels: int) -> list[Step]:
    mean, std = _IMAGENET if channels == 3 else ([0.5] * channels, [0.5] * channels)
    return [{"op": "to_float"}, {"op": "normalize", "mean": mean, "std": std}]


class _AffineOnPaper:
    """A random affine move; what comes in from outside has the colour of the top left pixel."""

    def __init__(self, **arguments: Any) -> None:
        self._move = v2.RandomAffine(**arguments, interpolation=InterpolationMode.BILINEAR)

    def __call__(self, image: Tensor) -> Tensor:
        # Filled with 0 on an image whose paper is 0: a fill colour would leave a dark fringe, which torchvision's
        # bilinear fill draws by weighting the border twice.
        paper = image[:, :1, :1]
        moved: Tensor = self._move(image - paper) + paper
        return moved


def _sometimes(make: Callable[..., Transform]) -> Callable[..., Transform]:
    """An operation that also takes ``p``, the share of the images that it is applied to; 1 unless given."""

    def made(p: float = 1.0, **arguments: Any) -> Transform:
        operation = make(**arguments)
        return operation if p == 1 else v2.RandomApply([operation], p=p)

    return made


def _to_float32() -> Transform:
    return v2.ToDtype(torch.float32, scale=True)  # type: ignore[no-any-return]


OPERATIONS: dict[str, Callable[..., Transform]] = {
    "affine_on_paper": _AffineOnPaper,
    "blur": _sometimes(v2.GaussianBlur),
    "center_crop": v2.CenterCrop,
    "color_jitter": _sometimes(v2.ColorJitter),
    "flip": v2.RandomHorizontalFlip,
    "grey": v2.RandomGrayscale,
    "normalize": v2.Normalize,
    "rand_augment": v2.RandAugment,
    "random_erasing": v2.RandomErasing,
    "random_resized_crop": v2.RandomResizedCrop,
    "resize": v2.Resize,
    "to_float": _to_float32,
}
"""What a step may be; nothing else can be called from a saved pipeline."""

_RANDOM = (
    "affine_on_paper",
    "blur",
    "color_jitter",
    "flip",
    "grey",
    "rand_augment",
    "random_erasing",
    "random_resized_crop",
)


def _operation(step: Step, *, fresh: bool) -> Transform:
    """The operation of a step; ``fresh``: on a tensor that nobody else has, which may be written over."""
    arguments = dict(step)
    name = arguments.pop("op", None)
    if name not in OPERATIONS:
        raise DataError(f"unknown operation {name!r}{suggestion(name, OPERATIONS)}")
    if "interpolation" in arguments:
        arguments["interpolation"] = InterpolationMode(arguments["interpolation"])
    if name == "normalize" and fresh:
        arguments["inplace"] = True
    try:
        return OPERATIONS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise DataError(f"operation {name}: {' '.join(str(error).split())}") from None
