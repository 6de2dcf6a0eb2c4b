"""The losses of a run from its configuration: metric loss, miner, class scores, exits, terms with their teachers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pytorch_metric_learning.losses import CrossBatchMemory, P2SGradLoss
from pytorch_metric_learning.losses.mixins import WeightMixin
from torch import nn

from dmlkd import registry
from dmlkd.config import (
    ClassesConfig,
    ExitsConfig,
    Part,
    RunConfig,
    TermConfig,
    TrainConfig,
    constructed,
    nested_part,
    parameters,
    schedules_within,
)
from dmlkd.distill import CrossEntropy, DistillationMethod, Schedule, Teacher
from dmlkd.errors import ConfigError
from dmlkd.models import ClassHead, ClassifyingModel, ClassScores, EmbeddingModel, ExitingModel
from dmlkd.signals import BEFORE_RELU
from dmlkd.training.objective import Objective, Term
from dmlkd.training.proxies import ProxyScores, has_proxies
from dmlkd.training.starting import start_metric_loss

Keys = tuple[str | int, ...]
T = TypeVar("T")
Student = EmbeddingModel | ExitingModel | ClassifyingModel


def build_losses(
    config: RunConfig,
    model: EmbeddingModel,
    *,
    classes: int,
    rows: int,
    known: Mapping[str, Any] = MappingProxyType({"paths": None, "targets": None, "replayed": None}),
    runs: Path | None = None,
) -> tuple[Student, Objective]:
    """Build metric loss, miner, class scores and terms for a model and a number of training classes and images.

    Args:
        config: the configuration.
        model: the embedding model of the student.
        classes: C, how many there are to train on.
        rows: N, training images.
        known: what is known of them, for parts that ask: their (N,) "paths" and "targets", the rows (R,) that are
            "replayed"; each None where there is no such thing.
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
        constructed(start_metric_loss, {}, ("start", "metric_loss"), metric_loss=loss, start=config.start, runs=runs)
    by_class = config.train.sampler != "shuffled" and not isinstance(loss, WeightMixin | P2SGradLoss | CrossBatchMemory)
    if config.train.per_class < 2 and by_class:
        raise ConfigError(
            f"{config.metric_loss.name} compares images of one class, so a batch needs at least 2 of each, "
            f"got {config.train.per_class}",
            ("train", "per_class"),
        )
    miner = _metric_learning("miners", config.miner, ("miner",), {}) if config.miner else None
    scores = _class_scores(config, loss, dim=model.dim, classes=classes)
    exiting = _exits(config, model)
    student = exiting or model if scores is None else ClassifyingModel(exiting or model, scores)
    supplies = {
        "network": student,
        "rows": rows,
        "dim": model.dim,
        "features": model.features,
        "stages": model.trunk.stage_channels,
        "chunk_size": config.train.chunk_size,
        "metric_loss": metric_loss,
        "miner": miner,
        "classes": classes,
        "runs": runs,
        **known,
    }
    if exiting is not None:
        supplies["exits"] = len(exiting.stages)
    if isinstance(student, ClassifyingModel):
        supplies |= {"class_scores": student.classes, "classify": student.classify}
        supplies["class_scores_of"] = functools.partial(_scores_of, config=config, dim=model.dim, classes=classes)
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


def _scores_of(loss: nn.Module, *, config: RunConfig, dim: int, classes: int) -> tuple[ClassScores, float]:
    """Class scores for an exit's metric loss, of the student's kind, and the weight of their cross-entropy."""
    if config.classes is None and has_proxies(loss):
        return ProxyScores(loss), 0.0
    section = config.classes or ClassesConfig()
    return ClassHead(dim=dim, classes=classes, subclasses=section.subclasses, scale=section.scale), section.weight


def _exits(config: RunConfig, model: EmbeddingModel) -> ExitingModel | None:
    """The model with exits, where a term trains them."""
    trained = [
        term.name
        for index, term in enumerate(config.distill)
        if registry.lookup(registry.METHODS, "self-distillation method", term.name, ("distill", index)).exits
    ]
    if not trained:
        if config.exits is not None:
            raise ConfigError("no term of distill trains exits, as byot does; leave exits out", ("exits",))
        return None
    return constructed(ExitingModel, (config.exits or ExitsConfig()).model_dump(), ("exits",), model=model)


def check_student(terms: Sequence[Term], student: Student, train: TrainConfig) -> None:
    """Refuse terms that read what the student does not give, or that compare views where there is but one.

    Raises:
        ConfigError: naming the term.
    """
    for term in terms:
        if missing := sorted(term.method.student_needs & BEFORE_RELU - student.gives):
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
        method = _method(registry.load(entry.method), config.arguments, path, supplies)
        teacher = config.teacher or (Part(name=entry.teacher) if entry.teacher else None)
        if teacher is not None and (key := teacher.model_dump_json()) not in teachers:
            kind = registry.lookup(registry.TEACHERS, "teacher", teacher.name, (*path, "teacher"))
            teachers[key] = _supplied(kind, teacher.arguments, (*path, "teacher"), supplies)
        terms.append(
            constructed(
                Term,
                {},
                path,
                method=method,
                teacher=None if teacher is None else teachers[key],
                weight=config.weight,
                schedule=_schedule(config.schedule or Part(name=entry.schedule), (*path, "schedule")),
                name=config.name if names.count(config.name) == 1 else f"{config.name}_{index}",
            )
        )
    return terms


def _method(
    target: Callable[..., DistillationMethod], arguments: Mapping[str, Any], path: Keys, supplies: Mapping[str, Any]
) -> DistillationMethod:
    """A method with its arguments, of which some are schedules by name."""
    curves = {key: _schedule(part, (*path, key)) for key, part in schedules_within(target, arguments, path).items()}
    rest = {key: value for key, value in arguments.items() if key not in curves}
    return _supplied(target, rest, path, {**supplies, **curves})


def _schedule(part: Part, path: Keys) -> Schedule:
    curve: type[Schedule] = registry.lookup(registry.SCHEDULES, "schedule", part.name, path)
    return constructed(curve, part.arguments, path)


def _supplied(target: Callable[..., T], arguments: Mapping[str, Any], path: Keys, supplies: Mapping[str, Any]) -> T:
    """A part with its arguments, and what it asks for of the run that it is part of."""
    asked = parameters(target)
    if {"class_scores", "classify"} & (set(asked) - set(supplies)):
        raise ConfigError(
            f"{getattr(target, '__name__', target)} reads class scores, which no method of distill does", path
        )
    return constructed(target, arguments, path, **{name: value for name, value in supplies.items() if name in asked})


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
    return constructed(target, arguments, path, **supplied)
