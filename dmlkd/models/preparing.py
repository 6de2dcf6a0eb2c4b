"""How the images of a saved model are prepared, and its images from whatever callers have them in."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as v2f

from dmlkd.data import ImageDataset, ImageTable, transforms
from dmlkd.data.images import read_image
from dmlkd.data.transforms import Transform
from dmlkd.errors import UserError, suggestion

ImageLike: TypeAlias = str | Path | Image.Image | Tensor | NDArray[np.uint8]
"""A path, a PIL image, or (C, H, W) uint8 pixels."""

_TRANSFORMS = {"plain": transforms.plain, "handwriting": transforms.handwriting, "published": transforms.published}
_MODES = {1: "L", 3: "RGB"}


class Preparation(NamedTuple):
    """What is done to an image before a model sees it.

    Attributes:
        transform: (C, H, W) uint8 in, float of one size out.
        channels: C, 1 (grey) or 3 (RGB).
        description: says the same in words; equal for equal preparations.
    """

    transform: Transform
    channels: int
    description: str

    def of(self, image: ImageLike) -> Tensor:
        """Read and prepare one image.

        Raises:
            UserError: if it cannot be read or has another number of channels.
        """
        if isinstance(image, str | Path):
            path = Path(image)
            image = read_image(path.parent, path.name, channels=self.channels)
        if isinstance(image, Image.Image):
            image = v2f.pil_to_tensor(image.convert(_MODES[self.channels]))
        pixels = torch.as_tensor(image)
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != self.channels:
            wanted = f"({self.channels}, H, W) uint8"
            raise UserError(f"an image must be a path, a PIL image or {wanted}, got {_shape(pixels)} {pixels.dtype}")
        return self.transform(pixels)

    def dataset(self, table: ImageTable) -> ImageDataset:
        """The images of a table, prepared."""
        return ImageDataset(table, self.transform, channels=self.channels)


def preparation(folder: Path) -> Preparation | None:
    """How the images of a saved model are prepared; None if neither its folder nor its run's says.

    Args:
        folder: of a saved model, such as ``model/`` of a run folder.

    Raises:
        UserError: if what says so cannot be read.
    """
    # The one place that knows where this is written down.
    config = folder.parent / "config.yaml"
    if folder.name != "model" or not config.is_file():
        return None
    try:
        data = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
        return prepared_by(data["transform"], image_size=int(data["image_size"]), channels=int(data["channels"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{config} does not say how images are prepared: {' '.join(str(error).split())}") from None


def prepared_by(name: str, *, image_size: int, channels: int) -> Preparation:
    """The test pipeline of a transform by name.

    Args:
        name: "plain", "handwriting" or "published".
        image_size: pixels a side of what the network sees.
        channels: 1 or 3.

    Raises:
        UserError: for another name or a size below 1.
    """
    if name not in _TRANSFORMS:
        raise UserError(f"unknown transform {name!r}{suggestion(name, _TRANSFORMS)}")
    if image_size < 1:
        raise UserError(f"image_size must be at least 1, got {image_size}")
    made = _TRANSFORMS[name](image_size=image_size, channels=channels)
    return Preparation(made.test, channels, f"{name}, {image_size} px, {channels} channels")


def batches(images: Tensor | Sequence[ImageLike], batch_size: int, preparation: Preparation | None) -> Iterator[Tensor]:
    """Cut images into batches (B, C, H, W) of floats, prepared unless they are floats already.

    Args:
        images: (N, C, H, W) floats as the network takes them, or anything to be prepared.
        batch_size: images at a time.
        preparation: for what is to be prepared.

    Raises:
        UserError: if ``batch_size`` is below 1, or images need preparing and nothing says how.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    ready = isinstance(images, Tensor) and images.is_floating_point()
    if not ready and preparation is None:
        raise UserError(
            "nothing says how this model's images are prepared: hand in floats (N, C, H, W), prepared as in training, "
            "or set model.preparation"
        )
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        if isinstance(part, Tensor) and ready:
            yield part
        else:
            assert preparation is not None
            yield torch.stack([preparation.of(image) for image in part])


def _shape(pixels: Tensor) -> tuple[int, ...]:
    return tuple(pixels.shape)
