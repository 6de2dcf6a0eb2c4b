"""Reading one image: from a file, or from inside a zip without unpacking it."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from dmlkd.data.places import SEPARATOR, read_bytes
from dmlkd.errors import DataError

_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
# Not all that Pillow knows: it hands PostScript, for one, to an outside program.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preparation:
    """What is done to an image before any transform, the same every time: what a cache holds.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        crop: to the image's box.
        square: pixels a side, resized to whatever the proportions; None: not so.
        shorter: pixels of the shorter side, resized in proportion; None: not so.
    """

    channels: int
    crop: bool = False
    square: int | None = None
    shorter: int | None = None


def read_image(root: Path, path: str, *, channels: int) -> Image.Image:
    """Decode one image, upright, to grey or RGB with 8 bits a channel.

    The EXIF orientation is applied; transparency is laid on white; of 16 bits the upper 8 are kept; of several frames
    the first is taken. The format is what the content says, whatever the name ends in.

    Args:
        root: the folder the path starts from; nothing outside it is read.
        path: a file below it, or ``archive.zip::member``.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        DataError: if it is missing, outside the root or not an image that can be decoded, naming it.
    """
    try:
        return decode(read_bytes(root, path), channels=channels)
    except DataError as error:
        shown = path if SEPARATOR in path else root / path
        raise DataError(f"{shown}: cannot be read as an image: {error}") from None


def decode(content: bytes, *, channels: int) -> Image.Image:
    """As :func:`read_image`, from the bytes of a file.

    Raises:
        DataError: saying why they cannot be decoded.
    """
    if not content:
        raise DataError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_size(image)
            image.load()
            return plain_image(image, channels=channels)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"not an image: it begins with {content[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"more than {Image.MAX_IMAGE_PIXELS} pixels (PIL.Image.MAX_IMAGE_PIXELS)") from None
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        raise DataError(" ".join(str(error).split()) or type(error).__name__) from None


def plain_image(image: Image.Image, *, channels: int) -> Image.Image:
    """An opened image as :func:`read_image` gives it: upright, opaque, grey or RGB with 8 bits a channel.

    Raises:
        DataError: for 32-bit pixels that are no 16-bit ones.
    """
    return _opaque(_upright(image), _MODES[channels])


def prepared(image: Image.Image, preparation: Preparation, box: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """Crop and resize a decoded image as a preparation says.

    Args:
        image: upright, grey or RGB.
        preparation: what to do.
        box: (4,) x, y, width and height in pixels, cut off at the edges of the image.

    Returns:
        (C, H, W).

    Raises:
        DataError: if the box holds no pixel of the image.
    """
    if preparation.crop and box is not None:
        image = image.crop(_edges(box, image.size))
    width, height = image.size
    if preparation.square:
        image = _resized(image, (preparation.square, preparation.square))
    elif preparation.shorter:
        side = preparation.shorter
        long = int(side * max(image.size) / min(image.size))
        image = _resized(image, (side, long) if width <= height else (long, side))
    pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _edges(box: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    x, y, width, height = (float(value) for value in box)
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(size[0], round(x + width)), min(size[1], round(y + height))
    if left >= right or top >= bottom:
        raise DataError(f"box {x:g}, {y:g}, {width:g}, {height:g} holds no pixel of the {size[0]} x {size[1]} image")
    return left, top, right, bottom


def _check_size(image: Image.Image) -> None:
    # Pillow refuses at twice the limit, and only warns at once: a warning goes unseen in a worker.
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise DataError(f"{image.width} x {image.height} is more than {most} pixels (PIL.Image.MAX_IMAGE_PIXELS)")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


def _opaque(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """The image in this mode, transparency laid on white, 16 bits shifted to 8 (Pillow's own conversion clips them)."""
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min(initial=0) < 0 or deep.max(initial=0) > 65535:
            raise DataError(f"has 32-bit pixels from {deep.min()} to {deep.max()}, not 0 to 65535")
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise DataError("has floating-point pixels, whose range is not known")
    elif image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), above).convert("RGB")
    return image.convert(mode)
