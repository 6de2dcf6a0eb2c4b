"""Any tree of class folders, as torchvision's ImageFolder reads it, on disk or inside a zip."""

import os
from collections.abc import Iterable
from pathlib import Path

from dmlkd.data.lines import path_column
from dmlkd.data.places import is_litter, members
from dmlkd.data.splits import split_by_class
from dmlkd.data.table import ImageTable, numbered, strings
from dmlkd.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def image_folder(
    root: Path,
    *,
    archive: str | None = None,
    train_classes: tuple[str | int, ...] = (),
    train_fraction: float = 0.5,
) -> ImageTable:
    """Read ``CLASS/.../image``, or ``train/CLASS/.../image`` beside ``test/CLASS/.../image`` (and ``val``).

    Without split folders whole classes are test classes. Hidden files and what macOS adds are no images.

    Args:
        root: the folder above the class folders.
        archive: a zip below ``root`` that holds the tree instead, read in place.
        train_classes: classes to train on, the others are for testing; empty: ``train_fraction`` decides.
        train_fraction: share of the classes, in sorted order, to train on; 0: all are for testing.

    Raises:
        DataError: if no image is there, one is in no class folder, a folder is a symbolic link, or the classes cannot
            be split as asked for.
    """
    place = root if archive is None else root / archive
    if archive is None:
        files = sorted(files_below(root))
    else:
        path_column([archive], root)
        files = members(place)
    images = [file for file in files if is_image(file)]
    if not images:
        raise DataError(f"{place} holds no images in class folders; images end in {', '.join(sorted(EXTENSIONS))}")
    above = os.path.commonpath([os.path.dirname(image) for image in images]) if archive else ""
    parts = [image.removeprefix(above).lstrip("/").split("/") for image in images]
    by_split = all(len(part) > 2 for part in parts) and {part[0] for part in parts} <= _SPLITS.keys()
    depth = 1 if by_split else 0
    if loose := [image for image, part in zip(images, parts, strict=True) if len(part) < depth + 2]:
        raise DataError(f"{place}: {loose[0]} is in no class folder ({len(loose)} images are not)")
    labels, names = numbered(strings(part[depth] for part in parts))
    if by_split:
        if train_classes:
            raise DataError(f"{place} has folders of splits: train_classes does not go with them")
        split = strings(_SPLITS[part[0]] for part in parts)
    else:
        split = split_by_class(labels, names, train_classes=train_classes, train_fraction=train_fraction)
    prefix = "" if archive is None else f"{archive}::"
    return ImageTable(path_column([prefix + image for image in images], place), labels, split, names, root=root)


def is_image(file: str) -> bool:
    """Whether a name ends as an image's does."""
    return os.path.splitext(file)[1].lower() in EXTENSIONS


def files_below(root: Path) -> Iterable[str]:
    """The files below a folder, relative to it; neither hidden ones nor what macOS adds.

    Raises:
        DataError: for a folder that is a symbolic link.
    """
    for here, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        if links := [name for name in folders if (Path(here) / name).is_symlink()]:
            raise DataError(f"{Path(here) / links[0]} is a symbolic link to a folder, which is not followed")
        inside = Path(here).relative_to(root).as_posix()
        for name in names:
            if not is_litter(name):
                yield name if inside == "." else f"{inside}/{name}"
