"""Training, validation and test images of a run: by classes, by folds over classes, by domain, within classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.data.dataset import ImageDataset
from dmlkd.data.table import ImageTable, strings
from dmlkd.data.transforms import Transform
from dmlkd.errors import ConfigError, DataError, suggestion


class Unreadable(NamedTuple):
    """An image that could not be read.

    Attributes:
        row: in the table that was read.
        path: of the image.
        split: that it was in.
        reason: why.
    """

    row: int
    path: str
    split: str
    reason: str


@dataclass(frozen=True)
class DataSplits:
    """What a run trains on, chooses its epoch on (None: nothing) and is tested on.

    Attributes:
        train: the training images, their labels noisy where ``true_labels`` says otherwise.
        val: the validation images; None: no validation split.
        test: the test images.
        true_labels: (N,) labels of the training images before noise; None: there is no noise.
        skipped: images that could not be read and were left out.
        seen: images of the training classes that are neither trained nor validated on, with their true labels and the
            targets of ``train``; None: none are held out.
        on_device: what is done to a whole training batch (B, C, H, W) on the device; None: nothing, ``train`` does it.
        trained: (M,) ascending rows of ``train`` that batches are drawn from, where a run sees a part of it; rows and
            targets stay those of the whole. None: all.
        replayed: (R,) those of ``trained`` that are kept from an earlier fit's classes, best first in each class; None:
            there is no memory.
    """

    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset
    true_labels: NDArray[np.int64] | None = None
    skipped: tuple[Unreadable, ...] = ()
    seen: ImageDataset | None = None
    on_device: Transform | None = None
    trained: NDArray[np.int64] | None = None
    replayed: NDArray[np.int64] | None = None

    @property
    def left_out(self) -> NDArray[np.int64]:
        """The rows of ``train`` that are not trained on."""
        rows = np.arange(len(self.train))
        return rows[:0] if self.trained is None else np.setdiff1d(rows, self.trained)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images and classes of each split; of training, those that are trained on, the memory's also apart."""
        trained = slice(None) if self.trained is None else self.trained
        parts = {"train": self.train.labels[trained]}
        for name, part in (("val", self.val), ("test", self.test), ("seen", self.seen)):
            if part is not None:
                parts[name] = part.labels
        if self.replayed is not None:
            parts["replayed"] = self.train.labels[self.replayed]
        counts = {name: {"images": len(part), "classes": len(np.unique(part))} for name, part in parts.items()}
        if self.skipped:
            counts["skipped"] = {"images": len(self.skipped)}
        if self.true_labels is not None:
            counts["train"]["wrong_labels"] = int((self.train.labels != self.true_labels)[trained].sum())
        return counts


def split_classes(table: ImageTable, fraction: float, *, seed: int) -> tuple[ImageTable, ImageTable | None]:
    """Hold out whole classes for validation.

    Args:
        table: the training rows.
        fraction: of the classes, 0 <= fraction < 1, rounded to the nearest number of classes; 0 holds out none.
        seed: for the choice.

    Returns:
        What is left for training, and what is held out (None if nothing is).

    Raises:
        DataError: if fewer than 2 classes would be held out or left: retrieval among one class is always right.
    """
    if fraction == 0:
        return table, None
    classes = np.unique(table.labels)
    held = round(fraction * len(classes))
    if held < 2 or len(classes) - held < 2:
        raise DataError(
            f"data.validation = {fraction} holds out {held} of {len(classes)} training classes; "
            "at least 2 must be held out and 2 left, or set data.validation to 0"
        )
    chosen = np.random.default_rng([seed, len(classes)]).permutation(classes)[:held]
    inside = np.isin(table.labels, chosen)
    return table.where(~inside), table.where(inside)


def class_folds(table: ImageTable, folds: int, fold: int, *, seed: int) -> tuple[ImageTable, ImageTable]:
    """Hold out one of several equal shares of the classes for validation; each class is held out in just one fold.

    Args:
        table: the training rows.
        folds: shares that the classes are dealt into, of sizes that differ by at most one class.
        fold: which of them is held out, 0 to ``folds`` - 1.
        seed: for the shares.

    Returns:
        What is left for training, and what is held out.

    Raises:
        ConfigError: if there is no such fold.
        DataError: if fewer than 2 classes would be held out or left.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ConfigError(f"fold must be from 0 to folds - 1 and folds at least 2, got fold {fold} of {folds}")
    classes = np.unique(table.labels)
    held = np.array_split(np.random.default_rng([seed, len(classes)]).permutation(classes), folds)[fold]
    if len(held) < 2 or len(classes) - len(held) < 2:
        raise DataError(
            f"fold {fold} of {folds} holds out {len(held)} of {len(classes)} training classes; "
            "at least 2 must be held out and 2 left"
        )
    inside = np.isin(table.labels, held)
    return table.where(~inside), table.where(inside)


def hold_out_images(table: ImageTable, share: float, *, seed: int) -> tuple[ImageTable, ImageTable | None]:
    """Hold out some images of each class, to measure class scores on.

    Args:
        table: the training rows.
        share: of the images of each class, 0 <= share < 1, rounded to whole images; at least one is left.
        seed: for the choice.

    Returns:
        What is left for training, and what is held out (None if ``share`` is 0).

    Raises:
        DataError: if no class has as many images as that would take.
    """
    if not share:
        return table, None
    order = np.lexsort((np.random.default_rng([seed, len(table), 11]).random(len(table)), table.labels))
    _, place, sizes = np.unique(table.labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(table), np.int64)  # of each image within its class, at random
    rank[order] = np.arange(len(table)) - np.repeat(sizes.cumsum() - sizes, sizes)
    inside = rank < np.minimum(np.rint(share * sizes), sizes - 1)[place]
    if not inside.any():
        raise DataError(f"data.held_out_images = {share} holds out no image: no class has enough of them")
    return table.where(~inside), table.where(inside)


def leave_domain_out(table: ImageTable, domain: str) -> ImageTable:
    """Split by domain instead: the rows of one domain are for testing, all others for training.

    Args:
        table: with a column ``domain``; its own split is not used.
        domain: to test on.

    Raises:
        DataError: if there is no such domain, or no other.
    """
    if table.domain is None:
        raise DataError("data.test_domain needs images with domains: a table with a column domain")
    names = [str(name) for name in np.unique(table.domain)]
    if domain not in names:
        raise DataError(f"no image is of domain {domain!r}{suggestion(domain, names)}")
    if len(names) < 2:
        raise DataError(f"all images are of domain {domain!r}: none is left to train on")
    split = np.where(table.domain == domain, strings(["test"]), strings(["train"]))
    return replace(table, split=split, role=None)


def split_images(table: ImageTable, share: float) -> ImageTable:
    """Split within the classes instead: the last share of each class's rows is for testing, the others for training.

    Args:
        table: its own split is not used.
        share: of the rows of a class, above 0 and below 1, rounded, at least one and not all.

    Raises:
        ConfigError: if the share is out of range.
        DataError: if a class has but one image.
    """
    if not 0 < share < 1:
        raise ConfigError(f"test_share must be above 0 and below 1, got {share}")
    _, class_of_row, sizes = np.unique(table.labels, return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        raise DataError(f"class {table.class_names[sizes.argmin()]!r} has but one image: it cannot be split")
    first = np.clip(np.rint((1 - share) * sizes).astype(np.int64), 1, sizes - 1)
    order = np.argsort(class_of_row, kind="stable")
    place = np.empty(len(table), dtype=np.int64)  # of each row within its class
    place[order] = np.arange(len(table)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    split = np.where(place < first[class_of_row], strings(["train"]), strings(["test"]))
    return replace(table, split=split, role=None)


def merged_classes(table: ImageTable, superclasses: Mapping[str, Sequence[str | int]]) -> ImageTable:
    """Give each image the label of the superclass that its class belongs to.

    Args:
        table: the training rows.
        superclasses: by name, the names or ids of the classes in each; it may name classes that have no row.

    Raises:
        ConfigError: if a class is in two superclasses or in none, or all images are of one.

    >>> names = strings(["a", "b", "c"])
    >>> table = ImageTable(names, np.array([3, 5, 8]), strings(["train"] * 3), names)
    >>> merged_classes(table, {"both": ["a", 8], "other": ["b"]}).labels
    array([0, 1, 0])
    """
    member_of: dict[str, int] = {}
    for number, (name, members) in enumerate(superclasses.items()):
        for member in map(str, members):
            if member_of.setdefault(member, number) != number:
                raise ConfigError(f"class {member} is in two superclasses, one of them {name!r}")
    merged = []
    for label, name in zip(np.unique(table.labels).tolist(), map(str, table.class_names), strict=True):
        found = member_of.get(name, member_of.get(str(label)))
        if found is None:
            raise ConfigError(f"class {name!r} is in no superclass; every class that is trained on must be")
        merged.append(found)
    used = np.unique(merged)
    if len(used) < 2:
        raise ConfigError("all images that are trained on are of one superclass; at least 2 are needed")
    labels = np.array(merged)[np.unique(table.labels, return_inverse=True)[1]]
    return replace(table, labels=labels, class_names=strings([list(superclasses)[number] for number in used]))


def split_by_class(
    labels: NDArray[np.int64], names: NDArray[np.str_], *, train_classes: Sequence[str | int], train_fraction: float
) -> NDArray[np.str_]:
    """A split column (N,) by whole classes.

    Args:
        labels: (N,) class ids.
        names: (C,) of the classes, in ascending order of their ids.
        train_classes: names or ids of classes to train on; empty: ``train_fraction`` decides.
        train_fraction: share of the classes, in ascending order, to train on.

    Raises:
        ConfigError: if the share is not between 0 and 1.
        DataError: for a class that is not there.

    >>> ids = np.array([4, 4, 7, 9])
    >>> print(*split_by_class(ids, strings(["a", "b", "c"]), train_classes=["a", 9], train_fraction=0))
    train train test train
    """
    if not 0 <= train_fraction <= 1:
        raise ConfigError(f"train_fraction must be from 0 to 1, got {train_fraction}")
    classes = np.unique(labels)
    chosen = classes[: round(train_fraction * len(classes))]
    if train_classes:
        known = {str(name): label for name, label in zip(names, classes.tolist(), strict=True)}
        known |= {str(label): label for label in classes.tolist() if str(label) not in known}
        for name in train_classes:
            if str(name) not in known:
                raise DataError(f"there is no class {name!r}{suggestion(name, list(known)[:10000])}")
        chosen = np.array([known[str(name)] for name in train_classes])
    return np.where(np.isin(labels, chosen), strings(["train"]), strings(["test"]))


def seen_classes(table: ImageTable) -> list[str]:
    """Names of the classes that are both in training (or validation) and in the test: none under a zero-shot protocol.

    Args:
        table: of all rows.
    """
    test = table.split == "test"
    both = np.intersect1d(table.labels[test], table.labels[~test])
    return [str(name) for name in table.class_names[np.isin(np.unique(table.labels), both)]]
