"""Omniglot's two small background sets: handwritten characters, 20 drawings each."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dmlkd.data.table import ImageTable, strings
from dmlkd.errors import DataError

_SETS = {"train": "images_background_small1", "test": "images_background_small2"}
_ALSO_IN_TRAIN = frozenset({"Greek", "Latin"})
_DUE = {"train": (2720, 136), "test": (2120, 106)}


def omniglot_small(root: Path) -> ImageTable:
    """Read "omniglot-small": train on all of small1, test on small2 without the alphabets that small1 has too.

    Source: B. Lake, R. Salakhutdinov and J. Tenenbaum 2015, "Human-level concept learning through probabilistic
    program induction", https://doi.org/10.1126/science.aab3050. A class is a character of an alphabet.

    Args:
        root: a folder that holds ``images_background_small1`` and ``images_background_small2``, each unpacked or as
            the ``.zip`` it comes in (read in place).

    Raises:
        DataError: if either is missing, or a count of images or characters is not 2,720 / 136 and 2,120 / 106.
    """
    paths: list[str] = []
    names: list[str] = []
    split: list[str] = []
    for part, folder in _SETS.items():
        found = [(p, c) for p, c in _drawings(root, folder) if part == "train" or c.split("/")[0] not in _ALSO_IN_TRAIN]
        due = _DUE[part]
        count = len(found), len({c for _, c in found})
        if count != due:
            raise DataError(
                f"{root / folder}: found {count[0]} images of {count[1]} characters for {part}, "
                f"{due[0]} of {due[1]} are due"
            )
        for path, character in found:
            paths.append(path)
            names.append(character)
            split.append(part)
    class_names, labels = np.unique(strings(names), return_inverse=True)
    return ImageTable(strings(paths), labels.astype(np.int64), strings(split), class_names, root=root)


def _drawings(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """Yield (path below root, ALPHABET/characterNN) of each drawing, sorted."""
    archive = root / f"{folder}.zip"
    if (root / folder).is_dir():
        members = sorted(p.relative_to(root).as_posix() for p in (root / folder).glob("*/*/*.png"))
        prefix = ""
    elif archive.is_file():
        try:
            with zipfile.ZipFile(archive) as opened:
                members = sorted(name for name in opened.namelist() if name.endswith(".png"))
        except zipfile.BadZipFile as error:
            raise DataError(f"{archive} is not a readable zip file: {error}") from None
        prefix = f"{archive.name}::"
    else:
        raise DataError(f"{root} holds neither {folder}/ nor {folder}.zip")
    for member in members:
        parts = member.split("/")
        if parts[0] == folder and len(parts) == 4 and not parts[-1].startswith("._"):
            yield prefix + member, f"{parts[1]}/{parts[2]}"
