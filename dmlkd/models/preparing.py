"""How the images of a saved model are prepared, and its images from whatever callers have them in."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as v2f

from dmlkd.data import ImageDataset, ImageTable, images, transforms
from dmlkd.data.preprocessing import Preprocessing, load_transforms
from dmlkd.data.transforms import Pipeline
from dmlkd.errors import UserError, suggestion

ImageLike: TypeAlias = str | Path | Image.Image | Tensor | NDArray[np.uint8]
"""A path, a PIL image, or (C, H, W) uint8 pixels."""

_TRANSFORMS = {
    "bicubic": transforms.bicubic,
    "handwriting": transforms.handwriting,
    "plain": transforms.plain,
    "published": transforms.published,
}
_MODES = {1: "L", 3: "RGB"}


class Preparation(NamedTuple):
    """What is done to an image before a model sees it.

    Attributes:
        preprocessing: as kept beside the model.
    """

    preprocessing: Preprocessing

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.preprocessing.preparation.channels

    @property
    def description(self) -> str:
        """The same in words, as JSON: equal for equal preparations."""
        test = self.preprocessing.transforms.test
        steps = test.steps if isinstance(test, Pipeline) else repr(test)
        return json.dumps({"preparation": asdict(self.preprocessing.preparation), "test": steps})

    def of(self, image: ImageLike) -> Tensor:
        """Read and prepare one image.

        Raises:
            UserError: if it cannot be read or has another number of channels.
        """
        if isinstance(image, str | Path):
            path = Path(image)
            picture = images.read_image(path.parent, path.name, channels=self.channels)
        elif isinstance(image, Image.Image):
            picture = image.convert(_MODES[self.channels])
        else:
            pixels = torch.as_tensor(image)
            if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != self.channels:
                raise UserError(
                    f"an image must be a path, a PIL image or ({self.channels}, H, W) uint8, got "
                    f"{tuple(pixels.shape)} {pixels.dtype}"
                )
            picture = v2f.to_pil_image(pixels)
        prepared = torch.from_numpy(images.prepared(picture, self.preprocessing.preparation))
        return self.preprocessing.transforms.test(prepared)

    def dataset(self, table: ImageTable) -> ImageDataset:
        """The images of a table, prepared."""
        return self.preprocessing.dataset(table)


def preparation(folder: Path) -> Preparation | None:
    """How the images of a saved model are prepared; None if its folder does not say.

    Args:
        folder: of a saved model, such as ``model/`` of a run folder.

    Raises:
        DataError: if what says so cannot be read.
    """
    found = load_transforms(folder)
    return None if found is None else Preparation(found)


def prepared_by(name: str, *, image_size: int, channels: int) -> Preparation:
    """The test pipeline of a transform by name.

    Args:
        name: "plain", "handwriting", "published" or "bicubic".
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
    return Preparation(Preprocessing(images.Preparation(channels), made))


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
