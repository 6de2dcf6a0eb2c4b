"""What is in a data set: counts, images a class, sizes, and a sheet of examples."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dmlkd.data.checking import Readings
from dmlkd.data.counts import parts
from dmlkd.data.dataset import read_prepared
from dmlkd.data.images import Preparation
from dmlkd.data.table import ImageTable
from dmlkd.errors import DataError
from dmlkd.files import replacing

_LOOKED_AT = 1000
_CELL = 96


def describe(table: ImageTable) -> dict[str, Any]:
    """Images, classes and images a class of each part; domains; sizes.

    Args:
        table: what was read.

    Returns:
        "parts": by split or role; "domains": images by domain; "sizes": smallest, median and largest width and height
        of the upright images, before any crop, among up to 1,000 that were looked at, and how many cannot be read.
    """
    shown: dict[str, Any] = {"parts": {}, "domains": {}}
    for name, rows in parts(table).items():
        per_class = np.unique(rows.labels, return_counts=True)[1]
        shown["parts"][name] = {"images": len(rows), "classes": rows.classes, "images a class": _spread(per_class)}
    if table.domain is not None:
        names, images = np.unique(table.domain, return_counts=True)
        shown["domains"] = dict(zip(map(str, names), images.tolist(), strict=True))
    rows_seen = np.unique(np.linspace(0, len(table) - 1, _LOOKED_AT).astype(np.int64)).tolist()
    if table.pixels is not None:
        sizes = np.array([table.pixels[row].shape[:0:-1] for row in rows_seen])
    else:
        readings = Readings(table, Preparation(3), keep=False)
        sizes = np.array([readings[row].size for row in rows_seen])
    good = sizes[sizes[:, 0] > 0]
    widths, heights = (_spread(good[:, i]) for i in (0, 1)) if len(good) else ([], [])
    shown["sizes"] = {"width": widths, "height": heights, "of": len(rows_seen), "unreadable": len(sizes) - len(good)}
    return shown


def contact_sheet(table: ImageTable, file: Path, *, classes: int = 10, images: int = 10) -> None:
    """Write a picture with a row of images for each of some classes, evenly taken from training and test.

    Args:
        table: what was read.
        file: ``.png``.
        classes: rows.
        images: of each class, the first ones.

    Raises:
        UserError: if the file cannot be written.
    """
    labels = np.unique(table.labels)
    chosen = labels[np.unique(np.linspace(0, len(labels) - 1, classes).astype(np.int64))]
    names = dict(zip(labels.tolist(), table.class_names, strict=True))
    line = 14
    sheet = Image.new("RGB", (images * _CELL, len(chosen) * (_CELL + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, label in enumerate(chosen.tolist()):
        top = number * (_CELL + line)
        rows = np.flatnonzero(table.labels == label)
        draw.text((2, top), f"{table.split[rows[0]]}  {names[label]}  ({len(rows)} images)", fill="black")
        for place, row in enumerate(rows[:images].tolist()):
            sheet.paste(_thumbnail(table, row), (place * _CELL, top + line))
    with replacing(file) as temporary:
        sheet.save(temporary, "PNG")


def _thumbnail(table: ImageTable, row: int) -> Image.Image:
    """The image in a square cell; a grey one with a cross where it cannot be read."""
    cell = Image.new("RGB", (_CELL, _CELL), "white")
    try:
        if table.pixels is not None:
            pixels = np.asarray(table.pixels[row])
        else:
            assert table.root is not None
            pixels = read_prepared(table.root, str(table.paths[row]), Preparation(3))
        image = Image.fromarray(
            np.repeat(pixels, 3, 0).transpose(1, 2, 0) if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        )
        scale = (_CELL - 4) / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        cell.paste(image, (2, 2))
    except DataError:
        draw = ImageDraw.Draw(cell)
        draw.rectangle((2, 2, _CELL - 3, _CELL - 3), fill="lightgrey")
        draw.line((2, 2, _CELL - 3, _CELL - 3), fill="red")
        draw.line((2, _CELL - 3, _CELL - 3, 2), fill="red")
    return cell


def _spread(values: NDArray[Any]) -> list[int]:
    return [int(values.min()), int(np.median(values)), int(values.max())]
