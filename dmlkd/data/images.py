"""Reading one image: from a file, or from inside a zip without unpacking it."""

import functools
import io
import os
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dmlkd.errors import DataError

_MODES = {1: "L", 3: "RGB"}


def read_image(root: Path, path: str, *, channels: int) -> Image.Image:
    """Decode one image to grey or RGB.

    Args:
        root: the folder the path starts from; nothing outside it is read.
        path: a file below it, or ``archive.zip::member``.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        DataError: if it is missing, outside the root or not an image that can be decoded, naming it.
    """
    file, _, member = path.partition("::")
    full = root / file
    if not full.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path} is outside {root}")
    try:
        source: Path | io.BytesIO = io.BytesIO(_archive(full, os.getpid()).read(member)) if member else full
        with Image.open(source) as image:
            return image.convert(_MODES[channels])
    except (OSError, KeyError, UnidentifiedImageError, zipfile.BadZipFile) as error:
        raise DataError(f"{full if not member else path}: cannot be read as an image: {error}") from None


def resized(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize to a square with antialiasing and return it as (C, size, size)."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@functools.lru_cache(maxsize=8)
def _archive(path: Path, _process: int) -> zipfile.ZipFile:
    # One handle a process: a handle shared by forked workers would share its file position.
    return zipfile.ZipFile(path)
