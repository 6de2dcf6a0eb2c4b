"""How a model's images are prepared: kept beside the model, and applied again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmlkd.data.dataset import ImageDataset
from dmlkd.data.images import Preparation
from dmlkd.data.table import ImageTable
from dmlkd.data.transforms import Pipeline, Transforms
from dmlkd.errors import DataError, UserError
from dmlkd.files import write_json

FILE = "preprocessing.json"
FORMAT = 1


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a network sees it.

    Attributes:
        preparation: the same every time, and what a cache holds.
        transforms: after it, in training and in testing.
    """

    preparation: Preparation
    transforms: Transforms

    @classmethod
    def made_of(
        cls, transforms: Transforms, *, channels: int, crop: bool = False, shorter: int | None = None
    ) -> "Preprocessing":
        """What goes with two transforms: a square that both begin with is part of the preparation.

        Args:
            transforms: for training and testing.
            channels: 1 (grey) or 3 (RGB).
            crop: to the image's box.
            shorter: pixels of the shorter side that images are resized to first; None: they are not.
        """
        square = None if shorter else transforms.square or None
        return cls(Preparation(channels, crop, square, shorter), transforms)

    def dataset(
        self,
        table: ImageTable,
        *,
        training: bool = False,
        in_memory: bool = False,
        classes: NDArray[np.int64] | None = None,
    ) -> ImageDataset:
        """The images of a table, prepared for testing.

        Args:
            table: the images.
            training: prepared for training instead.
            in_memory: decode every image once, now, and keep it.
            classes: (C,) the class ids that targets count; None: those of the table.

        Raises:
            DataError: as :class:`~dmlkd.data.ImageDataset` does.
        """
        return ImageDataset(
            table,
            self.transforms.train if training else self.transforms.test,
            channels=self.preparation.channels,
            in_memory=in_memory,
            classes=classes,
            image_size=self.preparation.square or 0,
            shorter=self.preparation.shorter or 0,
            crop=self.preparation.crop,
        )


def save_transforms(folder: Path, preprocessing: Preprocessing) -> None:
    """Write ``preprocessing.json`` into a model's folder.

    Args:
        folder: of a saved model.
        preprocessing: its pipelines made of steps.

    Raises:
        UserError: for a transform that is not made of steps, or if the folder cannot be written to.
    """
    steps = {}
    for name, transform in preprocessing.transforms._asdict().items():
        if not isinstance(transform, Pipeline):
            raise UserError(f"the {name} transform is no dmlkd.data.transforms.Pipeline and cannot be written down")
        steps[name] = transform.steps
    write_json(folder / FILE, {"format": FORMAT, "preparation": asdict(preprocessing.preparation), **steps})


def load_transforms(folder: Path) -> Preprocessing | None:
    """Read how the images of a saved model are prepared; None if its folder does not say.

    Args:
        folder: of a saved model.

    Raises:
        DataError: if the file cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["format"] != FORMAT:
            raise DataError(f"format {saved['format']} is not {FORMAT}, the one that this version of dmlkd reads")
        preparation = Preparation(**saved["preparation"])
        return Preprocessing(preparation, Transforms(Pipeline(saved["train"]), Pipeline(saved["test"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"{file}: cannot be read: {' '.join(str(reason).split())}") from None
