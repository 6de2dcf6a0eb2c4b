"""From a checked configuration to live parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.losses import CrossBatchMemory, P2SGradLoss
from pytorch_metric_learning.losses.mixins import WeightMixin
from torch import nn

from dmlkd import registry
from dmlkd.config import DataConfig, Part, RunConfig, TermConfig, TrainConfig, checked, nested_part, parameters
from dmlkd.data import (
    ClassBalancedBatchSampler,
    DataSplits,
    ImageDataset,
    ImageTable,
    class_folds,
    leave_domain_out,
    noisy_labels,
    seen_classes,
    split_classes,
)
from dmlkd.data.batched import BatchPipeline
from dmlkd.data.cache import cached
from dmlkd.data.checking import find_unreadable, without
from dmlkd.data.images import Preparation
from dmlkd.data.preprocessing import Preprocessing
from dmlkd.data.splits import Unreadable
from dmlkd.data.transforms import Pipeline, Transforms
from dmlkd.distill import Schedule, Teacher
from dmlkd.errors import ConfigError, DataError, UserError
from dmlkd.models import EmbeddingModel
from dmlkd.training.objective import Objective, Term

Keys = tuple[str | int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of."""

    data: DataSplits
    model: EmbeddingModel
    objective: Objective
    sampler: ClassBalancedBatchSampler


def build(config: RunConfig) -> Parts:
    """Build data, model, objective and sampler.

    Raises:
        ConfigError: if one of them refuses its arguments, or they do not fit together.
        DataError: if the images are not there, incomplete or too few.
    """
    _check_accelerator(config.train)
    data = build_data(config.data, seed=config.train.seed)
    sampler = build_sampler(data.train, config.train)
    model = _built(EmbeddingModel, config.model, ("model",), in_channels=data.train.channels)
    classes = int(data.train.targets.max()) + 1
    return Parts(data, model, build_objective(config, model, classes=classes, rows=len(data.train)), sampler)


def _check_accelerator(train: TrainConfig) -> None:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(train.accelerator, True):
        message = f"this machine has no {train.accelerator} device; auto takes what there is"
        raise ConfigError(message, ("train", "accelerator"))


def build_data(config: DataConfig, *, seed: int) -> DataSplits:
    """Read the images and split them; the seed chooses the validation classes and the labels made wrong.

    Raises:
        DataError: if the images are not there, incomplete or too few, or a test class is trained on.
    """
    source = _source(config)
    train, val, true_labels = _training_rows(source.table, config, seed)
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
        on_device=on_device,
    )


class TrainingImages(NamedTuple):
    """The images a run trains on, prepared as for testing.

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
    rows, _, true_labels = _training_rows(source.table, config, seed)
    return TrainingImages(source.dataset(rows), rows.class_names, true_labels)


def _training_rows(
    table: ImageTable, config: DataConfig, seed: int
) -> tuple[ImageTable, ImageTable | None, NDArray[np.int64] | None]:
    """The rows to train on, those held out for validation, and the labels before noise where there is noise."""
    train, val = _validation(table, config, seed=seed)
    if not config.noise:
        return train, val, None
    noisy = noisy_labels(train.labels, config.noise, kind=config.noise_kind, seed=seed)
    return train.relabelled(noisy), val, train.labels


def _on_device(preprocessing: Preprocessing) -> BatchPipeline:
    train = preprocessing.transforms.train
    try:
        return BatchPipeline(train.steps if isinstance(train, Pipeline) else [])
    except DataError as error:
        raise ConfigError(str(error), ("data", "on_device")) from None


def build_test_data(config: DataConfig, preprocessing: Preprocessing | None = None) -> ImageDataset:
    """Read the test images alone, prepared as the configuration says, or as a saved model's are."""
    return _source(config, preprocessing).test()


def build_preprocessing(config: DataConfig) -> Preprocessing:
    """How the images of a configuration are prepared."""
    entry = registry.lookup(registry.DATA, "data set", config.name, ("data", "name"))
    size, channels = config.image_size or entry.image_size, config.channels or entry.channels
    make = registry.lookup(registry.TRANSFORMS, "transform", config.transform or entry.transform, ("data", "transform"))
    transforms: Transforms = make(image_size=size, channels=channels)
    square = None if config.shorter else transforms.square or None
    return Preprocessing(Preparation(channels, config.crop, square, config.shorter), transforms)


def read_table(config: DataConfig) -> ImageTable:
    """Read the table that a data section names, split by domain if it asks for that."""
    entry = registry.lookup(registry.DATA, "data set", config.name, ("data", "name"))
    reader = registry.load(entry.reader)
    arguments = {name: value for name, value in config.arguments.items() if name in parameters(reader)}
    if "root" in arguments:
        arguments["root"] = Path(arguments["root"])
    table: ImageTable = reader(**arguments)
    return table if config.test_domain is None else leave_domain_out(table, config.test_domain)


@dataclass(frozen=True)
class _Source:
    table: ImageTable
    preprocessing: Preprocessing
    in_memory: bool
    skipped: tuple[Unreadable, ...]

    def dataset(self, rows: ImageTable, *, training: bool = False) -> ImageDataset:
        return self.preprocessing.dataset(rows, training=training, in_memory=self.in_memory)

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


def build_sampler(dataset: ImageDataset, train: TrainConfig) -> ClassBalancedBatchSampler:
    """The batches that a training section asks for."""
    return ClassBalancedBatchSampler(
        dataset.targets,
        batch_size=train.batch_size,
        per_class=train.per_class,
        seed=train.seed,
        replacement=train.sampler == "published",
    )


def build_objective(config: RunConfig, model: EmbeddingModel, *, classes: int, rows: int) -> Objective:
    """Build metric loss, miner and distillation terms for a model and a number of training classes and images."""

    def metric_loss(dim: int) -> nn.Module:
        sizes = {"num_classes": classes, "embedding_size": dim, "descriptors_dim": dim}
        loss: nn.Module = _metric_learning("losses", config.metric_loss, ("metric_loss",), sizes)
        return loss

    loss = metric_loss(model.dim)
    if config.train.per_class < 2 and not isinstance(loss, WeightMixin | P2SGradLoss | CrossBatchMemory):
        raise ConfigError(
            f"{config.metric_loss.name} compares images of one class, so a batch needs at least 2 of each, "
            f"got {config.train.per_class}",
            ("train", "per_class"),
        )
    miner = _metric_learning("miners", config.miner, ("miner",), {}) if config.miner else None
    supplies = {
        "network": model,
        "rows": rows,
        "dim": model.dim,
        "features": model.trunk.channels,
        "metric_loss": metric_loss,
        "miner": miner,
    }
    return Objective(loss, _terms(config.distill, supplies), miner=miner)


def _terms(configs: tuple[TermConfig, ...], supplies: Mapping[str, Any]) -> list[Term]:
    """The terms; equal teachers are one teacher, and a method named twice has its index in its names."""
    teachers: dict[str, Teacher] = {}
    names = [config.name for config in configs]
    terms = []
    for index, config in enumerate(configs):
        path: Keys = ("distill", index)
        entry = registry.lookup(registry.METHODS, "self-distillation method", config.name, path)
        method = _built(registry.load(entry.method), config.arguments, path)
        teacher = config.teacher or (Part(name=entry.teacher) if entry.teacher else None)
        if teacher is not None and (key := teacher.model_dump_json()) not in teachers:
            kind = registry.lookup(registry.TEACHERS, "teacher", teacher.name, (*path, "teacher"))
            supplied = {name: value for name, value in supplies.items() if name in parameters(kind)}
            teachers[key] = _built(kind, teacher.arguments, (*path, "teacher"), **supplied)
        schedule = config.schedule or Part(name=entry.schedule)
        curve: type[Schedule] = registry.lookup(registry.SCHEDULES, "schedule", schedule.name, (*path, "schedule"))
        terms.append(
            _built(
                Term,
                {},
                path,
                method=method,
                teacher=None if teacher is None else teachers[key],
                weight=config.weight,
                schedule=_built(curve, schedule.arguments, (*path, "schedule")),
                name=config.name if names.count(config.name) == 1 else f"{config.name}_{index}",
            )
        )
    return terms


def _metric_learning(kind: str, part: Part, path: Keys, sizes: Mapping[str, int]) -> Any:
    """A part of pytorch-metric-learning, with the parts among its arguments and the sizes that it asks for."""
    target = registry.metric_learning_class(kind, part.name, (*path, "name"))
    arguments = {
        key: _metric_learning(registry.PML_PARTS[key], nested_part(value, (*path, key)), (*path, key), sizes)
        if key in registry.PML_PARTS
        else value
        for key, value in part.arguments.items()
    }
    taken = parameters(target)
    supplied = {key: size for key, size in sizes.items() if key in taken and key not in arguments}
    return _built(target, arguments, path, **supplied)


def _built(target: Callable[..., T], arguments: Mapping[str, Any], path: Keys, **supplied: Any) -> T:
    """Call a constructor with converted arguments; what it refuses becomes a configuration error at ``path``."""
    converted = checked(target, arguments, path, supplied=supplied)
    try:
        return target(**converted, **supplied)
    except ConfigError as error:
        raise ConfigError(str(error), path + error.path) from None
    except UserError as error:
        raise ConfigError(str(error), path) from None
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{getattr(target, '__name__', target)} refuses its arguments: {reason}", path) from error
