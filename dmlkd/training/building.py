"""From a checked configuration to live parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.losses import CrossBatchMemory, P2SGradLoss
from pytorch_metric_learning.losses.mixins import WeightMixin
from torch import nn

from dmlkd import registry
from dmlkd.config import ClassesConfig, Part, RunConfig, TermConfig, TrainConfig, checked, nested_part, parameters
from dmlkd.data import DataSplits, EpochBatchSampler
from dmlkd.distill import CrossEntropy, Schedule, Teacher
from dmlkd.errors import ConfigError, UserError
from dmlkd.models import ClassHead, ClassifyingModel, ClassScores, EmbeddingModel
from dmlkd.training.building_data import build_data, build_sampler
from dmlkd.training.objective import Objective, Term
from dmlkd.training.processes import check
from dmlkd.training.proxies import ProxyScores, has_proxies
from dmlkd.training.rates import lr_schedule
from dmlkd.training.settings import check_settings, checkpointed_trunk
from dmlkd.training.starting import start_metric_loss, start_model

Keys = tuple[str | int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of."""

    data: DataSplits
    student: EmbeddingModel | ClassifyingModel
    objective: Objective
    sampler: EpochBatchSampler

    @property
    def model(self) -> EmbeddingModel:
        """What is measured and saved: the student without its class scores."""
        return self.student.model if isinstance(self.student, ClassifyingModel) else self.student


def build(config: RunConfig, runs: Path | None = None) -> Parts:
    """Build data, model, objective and sampler.

    Args:
        config: the configuration.
        runs: the folder that the run folder is in, where earlier fits of the same plan lie; None: there are none.

    Raises:
        ConfigError: if one of them refuses its arguments, or they do not fit together.
        DataError: if the images are not there, incomplete or too few.
    """
    check_train(config.train)
    data = build_data(config.data, seed=config.train.seed)
    check_settings(config.train, validated=data.val is not None)
    sampler = build_sampler(data.train.targets, config.train, rows=data.trained)
    model = build_model(config, in_channels=data.train.channels, runs=runs)
    checkpointed_trunk(config.train, model)
    _check_smooth_ap(config, data.train.targets if data.trained is None else data.train.targets[data.trained])
    classes = int(data.train.targets.max()) + 1
    student, objective = build_losses(
        config, model, classes=classes, rows=len(data.train), paths=data.train.paths, runs=runs
    )
    return Parts(data, student, objective, sampler)


def build_model(config: RunConfig, *, in_channels: int, runs: Path | None = None) -> EmbeddingModel:
    """The model that a configuration asks for, with the weights that it starts from."""
    model = _built(EmbeddingModel, config.model, ("model",), in_channels=in_channels)
    if config.start is not None:
        _built(start_model, {}, ("start",), model=model, start=config.start, runs=runs)
    return model


def _check_smooth_ap(config: RunConfig, targets: NDArray[np.int64]) -> None:
    """Refuse batches with classes of differing size, at which pytorch-metric-learning stops in mid training."""
    if config.metric_loss.name != "SmoothAPLoss":
        return
    if config.train.sampler != "without_replacement":
        message = f"SmoothAPLoss needs equally many images of each class, which {config.train.sampler} does not draw"
        raise ConfigError(message, ("train", "sampler"))
    small = int((np.unique(targets, return_counts=True)[1] < config.train.per_class).sum())
    if small:
        raise ConfigError(
            f"SmoothAPLoss needs equally many images of each class in a batch, but {small} classes have fewer than "
            f"{config.train.per_class}; lower train.per_class or take FastAPLoss",
            ("train", "per_class"),
        )


def check_train(train: TrainConfig) -> None:
    """Check what a training section says of the machine, its processes and the learning rate.

    Raises:
        ConfigError: if the machine has no such device, or the schedule lacks a number.
    """
    lr_schedule(train)
    check(train)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(train.accelerator, True):
        message = f"this machine has no {train.accelerator} device; auto takes what there is"
        raise ConfigError(message, ("train", "accelerator"))
    if train.precision == "16-mixed" and (train.accelerator == "cpu" or not any(there.values())):
        raise ConfigError("16-mixed needs a GPU; bf16-mixed runs on a CPU too", ("train", "precision"))


def build_losses(
    config: RunConfig,
    model: EmbeddingModel,
    *,
    classes: int,
    rows: int,
    paths: NDArray[np.str_] | None = None,
    runs: Path | None = None,
) -> tuple[EmbeddingModel | ClassifyingModel, Objective]:
    """Build metric loss, miner, class scores and terms for a model and a number of training classes and images.

    Args:
        config: the configuration.
        model: the embedding model of the student.
        classes: C, how many there are to train on.
        rows: N, training images.
        paths: (N,) of them, for teachers that ask which image a row is.
        runs: where earlier fits of the same plan lie, as of :func:`build`.

    Returns:
        The student, which has class scores if a term reads them or they are to be measured, and the objective.
    """

    def metric_loss(dim: int) -> nn.Module:
        sizes = {"num_classes": classes, "embedding_size": dim, "descriptors_dim": dim}
        loss: nn.Module = _metric_learning("losses", config.metric_loss, ("metric_loss",), sizes)
        return loss

    loss = metric_loss(model.dim)
    if config.start is not None and config.start.metric_loss:
        _built(start_metric_loss, {}, ("start", "metric_loss"), metric_loss=loss, start=config.start, runs=runs)
    by_class = config.train.sampler != "shuffled" and not isinstance(loss, WeightMixin | P2SGradLoss | CrossBatchMemory)
    if config.train.per_class < 2 and by_class:
        raise ConfigError(
            f"{config.metric_loss.name} compares images of one class, so a batch needs at least 2 of each, "
            f"got {config.train.per_class}",
            ("train", "per_class"),
        )
    miner = _metric_learning("miners", config.miner, ("miner",), {}) if config.miner else None
    scores = _class_scores(config, loss, dim=model.dim, classes=classes)
    student = model if scores is None else ClassifyingModel(model, scores)
    supplies = {
        "network": student,
        "rows": rows,
        "dim": model.dim,
        "features": model.trunk.channels,
        "stages": model.trunk.stage_channels,
        "chunk_size": config.train.chunk_size,
        "metric_loss": metric_loss,
        "miner": miner,
        "classes": classes,
        "paths": paths,
        "runs": runs,
    }
    if isinstance(student, ClassifyingModel):
        supplies |= {"class_scores": student.classes, "classify": student.classify}
    terms = _terms(config.distill, supplies)
    check_student(terms, student, config.train)
    _check_subclasses(terms, scores)
    if isinstance(scores, ClassHead) and not any(term.method.supervises for term in terms):
        weight = (config.classes or ClassesConfig()).weight
        terms.append(Term(CrossEntropy(), weight=weight, name="classes"))
    return student, Objective(loss, terms, miner=miner, metric_weight=config.metric_weight)


def _class_scores(config: RunConfig, loss: nn.Module, *, dim: int, classes: int) -> ClassScores | None:
    """The class scores that the terms read or that are measured: the metric loss's own, else an auxiliary head."""
    read = [
        term.name
        for index, term in enumerate(config.distill)
        if registry.lookup(registry.METHODS, "self-distillation method", term.name, ("distill", index)).classes
    ]
    measured = config.data.held_out_images > 0
    if config.classes is not None and not read and not measured:
        raise ConfigError("no term of distill reads class scores; leave classes out", ("classes",))
    if not read and not measured:
        return None
    if config.classes is None and has_proxies(loss):
        return ProxyScores(loss)
    if config.classes is None and not read:  # a head that no term asks for would change what is trained
        raise ConfigError(
            f"class scores are measured on them, and {config.metric_loss.name} has none; add classes: {{}} to train a "
            "head beside it",
            ("data", "held_out_images"),
        )
    section = config.classes or ClassesConfig()
    return ClassHead(dim=dim, classes=classes, subclasses=section.subclasses, scale=section.scale)


def check_student(terms: Sequence[Term], student: EmbeddingModel | ClassifyingModel, train: TrainConfig) -> None:
    """Refuse terms that read what the student does not give, or that compare views where there is but one.

    Raises:
        ConfigError: naming the term.
    """
    for term in terms:
        if missing := sorted(term.method.student_needs - student.gives):
            raise ConfigError(
                f"{term.label} reads {missing[0]}, which only a backbone has whose stages end in batch norm and ReLU: "
                "convnet4 or a ResNet",
                ("model", "backbone"),
            )
        if term.method.views > train.views:
            raise ConfigError(
                f"{term.label} compares views of an image: set train.sampler to shuffled and train.views to "
                f"{term.method.views}",
                ("train", "views"),
            )


def _check_subclasses(terms: Sequence[Term], scores: ClassScores | None) -> None:
    """Refuse a term that reads subclasses where no class has two."""
    reading = [term.label for term in terms if "subclass_logits" in term.method.student_needs]
    if reading and scores is not None and scores.centres().shape[1] < 2:
        raise ConfigError(
            f"{reading[0]} needs at least 2 subclasses of each class; set classes.subclasses", ("classes",)
        )


def _terms(configs: tuple[TermConfig, ...], supplies: Mapping[str, Any]) -> list[Term]:
    """The terms; equal teachers are one teacher, and a method named twice has its index in its names."""
    teachers: dict[str, Teacher] = {}
    names = [config.name for config in configs]
    terms = []
    for index, config in enumerate(configs):
        path: Keys = ("distill", index)
        entry = registry.lookup(registry.METHODS, "self-distillation method", config.name, path)
        method = _supplied(registry.load(entry.method), config.arguments, path, supplies)
        teacher = config.teacher or (Part(name=entry.teacher) if entry.teacher else None)
        if teacher is not None and (key := teacher.model_dump_json()) not in teachers:
            kind = registry.lookup(registry.TEACHERS, "teacher", teacher.name, (*path, "teacher"))
            teachers[key] = _supplied(kind, teacher.arguments, (*path, "teacher"), supplies)
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


def _supplied(target: Callable[..., T], arguments: Mapping[str, Any], path: Keys, supplies: Mapping[str, Any]) -> T:
    """A part with its arguments, and what it asks for of the run that it is part of."""
    asked = parameters(target)
    if {"class_scores", "classify"} & (set(asked) - set(supplies)):
        raise ConfigError(
            f"{getattr(target, '__name__', target)} reads class scores, which no method of distill does", path
        )
    return _built(target, arguments, path, **{name: value for name, value in supplies.items() if name in asked})


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
