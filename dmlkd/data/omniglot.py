"""Omniglot: handwritten characters of many alphabets, 20 drawings each."""

from collections.abc import Collection, Mapping
from pathlib import Path

from dmlkd.data.counts import checked_counts
from dmlkd.data.lines import path_column
from dmlkd.data.places import members
from dmlkd.data.table import ImageTable, numbered, strings
from dmlkd.errors import DataError

_ALSO_IN_TRAIN = frozenset({"Greek", "Latin"})


def omniglot(root: Path, *, complete: bool = True) -> ImageTable:
    """Read Omniglot: train on the background set (964 characters), test on the evaluation set (659 characters).

    Source: B. Lake, R. Salakhutdinov and J. Tenenbaum 2015, "Human-level concept learning through probabilistic
    program induction", https://doi.org/10.1126/science.aab3050. A class is a character; its alphabet
    is its domain.

    Args:
        root: a folder that holds ``images_background`` and ``images_evaluation``, each unpacked or as the ``.zip`` it
            comes in (read in place).
        complete: refuse other counts than the official ones.

    Raises:
        DataError: if either is missing, or a count is not the official one.
    """
    sets = {"train": "images_background", "test": "images_evaluation"}
    return checked_counts("omniglot", _table(root, sets), root, complete=complete)


def omniglot_small(root: Path, *, complete: bool = True) -> ImageTable:
    """Read "omniglot-small": train on all of small1, test on small2 without the alphabets that small1 has too.

    Args:
        root: a folder that holds ``images_background_small1`` and ``images_background_small2``, each unpacked or as
            the ``.zip`` it comes in (read in place).
        complete: refuse other counts than 2,720 images of 136 characters and 2,120 of 106.

    Raises:
        DataError: if either is missing, or a count is not as due.
    """
    sets = {"train": "images_background_small1", "test": "images_background_small2"}
    table = _table(root, sets, left_out=_ALSO_IN_TRAIN)
    return checked_counts("omniglot-small", table, root, complete=complete)


def _table(root: Path, sets: Mapping[str, str], left_out: Collection[str] = ()) -> ImageTable:
    """The drawings of both sets; ``left_out``: alphabets that are not for testing."""
    paths: list[str] = []
    names: list[str] = []
    split: list[str] = []
    alphabets: list[str] = []
    for part, folder in sets.items():
        found, prefix = _drawings(root, folder)
        for path in found:
            _, alphabet, character, _ = path.split("/")
            if part == "train" or alphabet not in left_out:
                paths.append(prefix + path)
                names.append(f"{alphabet}/{character}")
                split.append(part)
                alphabets.append(alphabet)
    labels, class_names = numbered(strings(names))
    return ImageTable(
        path_column(paths, root), labels, strings(split), class_names, root=root, domain=strings(alphabets)
    )


def _drawings(root: Path, folder: str) -> tuple[list[str], str]:
    """The drawings, sorted, and what stands before each as a path below the root."""
    archive = root / f"{folder}.zip"
    if (root / folder).is_dir():
        found = sorted(path.relative_to(root).as_posix() for path in (root / folder).glob("*/*/[!.]*.png"))
        return found, ""
    if archive.is_file():
        inside = (name.split("/") for name in members(archive) if name.endswith(".png"))
        return ["/".join(parts) for parts in inside if parts[0] == folder and len(parts) == 4], f"{archive.name}::"
    raise DataError(f"{root} holds neither {folder}/ nor {folder}.zip")
