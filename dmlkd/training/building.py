"""From a checked configuration to live parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.losses import CrossBatchMemory, P2SGradLoss
from pytorch_metric_learning.losses.mixins import WeightMixin
from torch import nn

from dmlkd import registry
from dmlkd.config import Part, RunConfig, TermConfig, TrainConfig, checked, nested_part, parameters
from dmlkd.data import (
    ClassBalancedBatchSampler,
    DataSplits,
    ImageDataset,
)
from dmlkd.distill import Schedule, Teacher
from dmlkd.errors import ConfigError, UserError
from dmlkd.models import EmbeddingModel
from dmlkd.training.building_data import build_data
from dmlkd.training.objective import Objective, Term
from dmlkd.training.processes import Processes, check
from dmlkd.training.rates import lr_schedule

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
    check(config.train)
    lr_schedule(config.train)
    data = build_data(config.data, seed=config.train.seed)
    sampler = build_sampler(data.train, config.train)
    model = _built(EmbeddingModel, config.model, ("model",), in_channels=data.train.channels)
    classes = int(data.train.targets.max()) + 1
    _check_smooth_ap(config, data.train.targets)
    return Parts(data, model, build_objective(config, model, classes=classes, rows=len(data.train)), sampler)


def _check_smooth_ap(config: RunConfig, targets: NDArray[np.int64]) -> None:
    """Refuse batches with classes of differing size, at which pytorch-metric-learning stops in mid training."""
    if config.metric_loss.name != "SmoothAPLoss":
        return
    if config.train.sampler == "published":
        message = "SmoothAPLoss needs equally many images of each class; this sampler draws classes twice"
        raise ConfigError(message, ("train", "sampler"))
    small = int((np.unique(targets, return_counts=True)[1] < config.train.per_class).sum())
    if small:
        raise ConfigError(
            f"SmoothAPLoss needs equally many images of each class in a batch, but {small} classes have fewer than "
            f"{config.train.per_class}; lower train.per_class or take FastAPLoss",
            ("train", "per_class"),
        )


def _check_accelerator(train: TrainConfig) -> None:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(train.accelerator, True):
        message = f"this machine has no {train.accelerator} device; auto takes what there is"
        raise ConfigError(message, ("train", "accelerator"))
    if train.precision == "16-mixed" and (train.accelerator == "cpu" or not any(there.values())):
        raise ConfigError("16-mixed needs a GPU; bf16-mixed runs on a CPU too", ("train", "precision"))


def build_sampler(dataset: ImageDataset, train: TrainConfig) -> ClassBalancedBatchSampler:
    """The batches that a training section asks for, or this process's shares of them."""
    processes = Processes.now()
    return ClassBalancedBatchSampler(
        dataset.targets,
        batch_size=train.batch_size,
        per_class=train.per_class,
        seed=train.seed,
        replacement=train.sampler == "published",
        num_replicas=processes.size,
        rank=processes.rank,
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
        "chunk_size": config.train.chunk_size,
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
