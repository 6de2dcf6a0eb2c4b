"""How the images of a saved model are prepared, and its images from whatever callers have them in."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as v2f

from dmlkd.data import ImageDataset, ImageTable, images
from dmlkd.data.preprocessing import Preprocessing, load_transforms
from dmlkd.data.transforms import Pipeline, Transforms
from dmlkd.errors import UserError

ImageLike: TypeAlias = str | Path | Image.Image | Tensor | NDArray[np.uint8]
"""A path, a PIL image, or (C, H, W) uint8 pixels."""


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
            picture = images.plain_image(image, channels=self.channels)
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


def prepared_by(make: Callable[..., Transforms], *, image_size: int, channels: int) -> Preparation:
    """The preparation of a transform, as a run with it has.

    Args:
        make: such as :func:`dmlkd.data.transforms.plain`.
        image_size: pixels a side of what the network sees.
        channels: 1 or 3.

    Raises:
        UserError: for a size below 1.
    """
    if image_size < 1:
        raise UserError(f"image_size must be at least 1, got {image_size}")
    return Preparation(Preprocessing.made_of(make(image_size=image_size, channels=channels), channels=channels))


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
