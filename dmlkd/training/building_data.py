"""From the data section of a configuration to images, prepared and split, and to the batches they are drawn in."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd import registry
from dmlkd.config import DataConfig, TrainConfig, parameters
from dmlkd.data import (
    ClassBalancedBatchSampler,
    DataSplits,
    EpochBatchSampler,
    ImageDataset,
    ImageTable,
    ShuffledBatchSampler,
    class_folds,
    hold_out_images,
    leave_domain_out,
    merged_classes,
    noisy_labels,
    seen_classes,
    split_classes,
    split_images,
)
from dmlkd.data.batched import BatchPipeline
from dmlkd.data.cache import cached
from dmlkd.data.checking import find_unreadable, without
from dmlkd.data.preprocessing import Preprocessing
from dmlkd.data.splits import Unreadable
from dmlkd.data.subsets import class_tasks, image_folds
from dmlkd.data.transforms import Pipeline, Transforms
from dmlkd.errors import ConfigError, DataError
from dmlkd.training.processes import Processes


def build_data(config: DataConfig, *, seed: int) -> DataSplits:
    """Read the images and split them; the seed chooses the validation classes and the labels made wrong.

    Raises:
        DataError: if the images are not there, incomplete or too few, or a test class is trained on.
    """
    source = _source(config)
    train, val, seen, true_labels = _training_rows(source.table, config, seed)
    on_device = None
    prepared = source
    if config.on_device:
        on_device = _on_device(source.preprocessing)
        untouched = source.preprocessing.transforms._replace(train=Pipeline([]))
        prepared = replace(source, preprocessing=replace(source.preprocessing, transforms=untouched))
    return DataSplits(
        train=prepared.dataset(train, training=True),
        val=None if val is None else source.dataset(val),
        test=source.test(),
        true_labels=true_labels,
        skipped=source.skipped,
        seen=None if seen is None else source.seen(seen, np.unique(train.labels)),
        on_device=on_device,
        trained=_trained(train.labels, config, seed),
    )


def build_sampler(
    targets: NDArray[np.int64], train: TrainConfig, *, rows: NDArray[np.int64] | None = None
) -> EpochBatchSampler:
    """The batches that a training section asks for, of images with such labels or of some rows of them.

    Where there are several processes, this one's shares of them.
    """
    processes = Processes.now()
    if train.sampler == "shuffled":
        return ShuffledBatchSampler(
            len(targets),
            batch_size=train.batch_size,
            views=train.views,
            seed=train.seed,
            rows=rows,
            num_replicas=processes.size,
            rank=processes.rank,
        )
    return ClassBalancedBatchSampler(
        targets,
        batch_size=train.batch_size,
        per_class=train.per_class,
        seed=train.seed,
        replacement=train.sampler == "published",
        rows=rows,
        num_replicas=processes.size,
        rank=processes.rank,
    )


def _trained(labels: NDArray[np.int64], config: DataConfig, seed: int) -> NDArray[np.int64] | None:
    """The rows of the training images that a run sees, where it does not see all."""
    seen = np.ones(len(labels), np.bool_)
    if config.image_folds is not None and config.image_fold is not None:
        seen &= image_folds(labels, config.image_folds, seed=seed) != config.image_fold
    if config.tasks is not None and config.task is not None:
        seen &= class_tasks(labels, config.tasks, seed=seed) == config.task
    return None if seen.all() else np.flatnonzero(seen)


class TrainingImages(NamedTuple):
    """The images a run trains on, prepared as for testing; where it trains on a part of them, all the same.

    Attributes:
        images: in row order, their labels noisy where ``true_labels`` says otherwise.
        class_names: aligned with ``np.unique(images.labels)``.
        true_labels: (N,) labels before noise; None: there is no noise.
    """

    images: ImageDataset
    class_names: NDArray[np.str_]
    true_labels: NDArray[np.int64] | None


def build_training_images(config: DataConfig, *, seed: int) -> TrainingImages:
    """Read the training images of :func:`build_data` with the transform of testing."""
    source = _source(config)
    rows, _, _, true_labels = _training_rows(source.table, config, seed)
    return TrainingImages(source.dataset(rows), rows.class_names, true_labels)


class _TrainingRows(NamedTuple):
    train: ImageTable
    val: ImageTable | None
    seen: ImageTable | None
    true_labels: NDArray[np.int64] | None  # before noise; None: there is none


def _training_rows(table: ImageTable, config: DataConfig, seed: int) -> _TrainingRows:
    """The rows to train on, those held out for validation, and images held out of the classes trained on."""
    train, val = _validation(table, config, seed=seed)
    if config.superclasses is not None:
        try:
            train = merged_classes(train, config.superclasses)
        except ConfigError as error:
            raise ConfigError(str(error), ("data", "superclasses")) from None
    train, seen = hold_out_images(train, config.held_out_images, seed=seed)
    if not config.noise:
        return _TrainingRows(train, val, seen, None)
    noisy = noisy_labels(train.labels, config.noise, kind=config.noise_kind, seed=seed)
    return _TrainingRows(train.relabelled(noisy), val, seen, train.labels)


def build_seen_images(config: DataConfig, *, seed: int) -> ImageDataset | None:
    """Read the held-out images of training classes of :func:`build_data` alone; None: there are none."""
    if not config.held_out_images:
        return None
    source = _source(config)
    rows = _training_rows(source.table, config, seed)
    assert rows.seen is not None
    return source.seen(rows.seen, np.unique(rows.train.labels))


class TaskImages(NamedTuple):
    """Held-out images of the training classes, and the tasks that these classes were dealt out to.

    Attributes:
        images: prepared for testing, their targets those of the training images.
        tasks: (N,) of each image, from 0.
    """

    images: ImageDataset
    tasks: NDArray[np.int64]


def build_task_images(config: DataConfig, *, seed: int) -> TaskImages:
    """Read the held-out images of :func:`build_data` with their tasks; the configuration has both."""
    assert config.tasks is not None
    source = _source(config)
    rows = _training_rows(source.table, config, seed)
    assert rows.seen is not None
    classes, first = np.unique(rows.train.labels, return_index=True)
    images = source.seen(rows.seen, classes)
    return TaskImages(images, class_tasks(rows.train.labels, config.tasks, seed=seed)[first][images.targets])


def _on_device(preprocessing: Preprocessing) -> BatchPipeline:
    train = preprocessing.transforms.train
    try:
        return BatchPipeline(train.steps if isinstance(train, Pipeline) else [])
    except DataError as error:
        raise ConfigError(str(error), ("data", "on_device")) from None


def build_test_data(config: DataConfig, preprocessing: Preprocessing | None = None) -> ImageDataset:
    """Read the test images alone, prepared as the configuration says, or as a saved model's are."""
    return _source(config, preprocessing).test()


class NamedImages(NamedTuple):
    """Images prepared as for testing.

    Attributes:
        images: in row order.
        class_names: aligned with ``np.unique(images.labels)``.
    """

    images: ImageDataset
    class_names: NDArray[np.str_]


def build_images(config: DataConfig, *, split: str, preprocessing: Preprocessing | None = None) -> NamedImages:
    """Read the images of one split or all, labelled as the data set has them, whatever a run trains or tests on.

    Args:
        config: which data set; classes may be both trained and tested on.
        split: "train" (with the classes that a run would hold out for validation), "val", "test" or "all".
        preprocessing: how a saved model's images are prepared; None: as the configuration says.

    Raises:
        DataError: if the images are not there, or none is of the split.
    """
    source = _source(config.model_copy(update={"seen_classes": True}), preprocessing)
    rows = source.table if split == "all" else source.table.of_split(split)
    if not len(rows):
        raise DataError(f"{config.name} has no images of the split {split!r}")
    return NamedImages(source.dataset(rows), rows.class_names)


def build_preprocessing(config: DataConfig) -> Preprocessing:
    """How the images of a configuration are prepared."""
    entry = registry.lookup(registry.DATA, "data set", config.name, ("data", "name"))
    size, channels = config.image_size or entry.image_size, config.channels or entry.channels
    make = registry.lookup(registry.TRANSFORMS, "transform", config.transform or entry.transform, ("data", "transform"))
    transforms: Transforms = make(image_size=size, channels=channels)
    return Preprocessing.made_of(transforms, channels=channels, crop=config.crop, shorter=config.shorter)


def read_table(config: DataConfig) -> ImageTable:
    """Read the table that a data section names, split by domain or within classes if it asks for that."""
    entry = registry.lookup(registry.DATA, "data set", config.name, ("data", "name"))
    reader = registry.load(entry.reader)
    arguments = {name: value for name, value in config.arguments.items() if name in parameters(reader)}
    if "root" in arguments:
        arguments["root"] = Path(arguments["root"])
    table: ImageTable = reader(**arguments)
    if config.test_domain is not None and config.test_share is not None:
        raise ConfigError("test_domain and test_share split the images in two ways; give one", ("data", "test_share"))
    if config.test_domain is not None:
        return leave_domain_out(table, config.test_domain)
    return table if config.test_share is None else split_images(table, config.test_share)


@dataclass(frozen=True)
class _Source:
    table: ImageTable
    preprocessing: Preprocessing
    in_memory: bool
    skipped: tuple[Unreadable, ...]

    def dataset(self, rows: ImageTable, *, training: bool = False) -> ImageDataset:
        return self.preprocessing.dataset(rows, training=training, in_memory=self.in_memory)

    def seen(self, rows: ImageTable, classes: NDArray[np.int64]) -> ImageDataset:
        if (gone := np.setdiff1d(rows.labels, classes)).size:
            raise DataError(f"data.noise leaves no training image of {gone.size} classes; lower it")
        return self.preprocessing.dataset(rows, in_memory=self.in_memory, classes=classes)

    def test(self) -> ImageDataset:
        rows = self.table.of_split("test")
        if rows.role is not None and (rows.role == "").any() and not (rows.role == "").all():
            raise DataError("some test images have a role and some have none: each must be a query or in the gallery")
        return self.dataset(rows)


def _source(config: DataConfig, preprocessing: Preprocessing | None = None) -> _Source:
    table = read_table(config)
    zero_shot = not config.seen_classes and config.test_domain is None
    if zero_shot and (seen := seen_classes(table)):
        raise DataError(
            f"{len(seen)} classes are both trained on and tested, such as {seen[0]}; the test is on unseen classes, "
            "unless data.seen_classes is set"
        )
    preprocessing = preprocessing or build_preprocessing(config)
    skipped: tuple[Unreadable, ...] = ()
    skip = config.corrupt == "skip"
    if config.cache:
        table, skipped = cached(table, preprocessing.preparation, Path(config.cache), skip=skip, workers=config.workers)
    elif skip:
        skipped = find_unreadable(table, preprocessing.preparation, workers=config.workers)
    return _Source(without(table, skipped), preprocessing, config.in_memory, skipped)


def _validation(table: ImageTable, config: DataConfig, *, seed: int) -> tuple[ImageTable, ImageTable | None]:
    """Training and validation rows: the table's own, a fold over the classes, or a share of them."""
    train, own = table.of_split("train"), table.of_split("val")
    if len(own):
        return train, own
    if config.folds is not None:
        return class_folds(train, config.folds, config.fold, seed=seed)
    return split_classes(train, config.validation, seed=seed)
