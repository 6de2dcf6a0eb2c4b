"""Reading a configuration file: YAML, ``--set``, and the check of every name and argument before anything is built."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dmlkd import registry
from dmlkd.config.schema import (
    ClassesConfig,
    DataConfig,
    EvalConfig,
    Part,
    ReplayConfig,
    RunConfig,
    StartConfig,
    TermConfig,
    TrainConfig,
    named,
)
from dmlkd.config.signatures import checked, explain, parameters
from dmlkd.config.yaml_source import Keys, YamlSource
from dmlkd.errors import ConfigError, suggestion

SUPPLIED_TO_LOSSES = ("num_classes", "embedding_size", "descriptors_dim")
"""Arguments of metric losses that the data and the model settle."""

SUPPLIED_TO_TERMS = (
    "network",
    "rows",
    "dim",
    "features",
    "stages",
    "chunk_size",
    "metric_loss",
    "miner",
    "classes",
    "class_scores",
    "class_scores_of",
    "classify",
    "paths",
    "targets",
    "replayed",
    "runs",
    "exits",
)
"""Arguments of methods and teachers that the rest of the configuration settles."""

_PARTS_OF_DATA = (("folds", "fold"), ("image_folds", "image_fold"), ("tasks", "task"))


def load_config(path: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, YamlSource]:
    """Read a configuration file and apply ``a.b.0.c=value`` overrides.

    Args:
        path: of the YAML file.
        overrides: the values of ``--set``.

    Returns:
        The checked configuration, and its source, which knows the line of each key.

    Raises:
        ConfigError: one line that names the file, the line where possible, what is wrong and what would be right.
    """
    source = read_source(path, overrides)
    try:
        if "plan" in source.values:
            raise ConfigError("here is a plan of several fits, where the configuration of one run is due", ("plan",))
        return checked_config(source.values), source
    except ConfigError as error:
        raise source.located(error) from None


def read_source(path: Path, overrides: Sequence[str] = ()) -> YamlSource:
    """Read a YAML file and lay ``--set`` options over it."""
    source = YamlSource.read(path)
    for override in overrides:
        source.override(override)
    return source


def checked_config(values: Mapping[str, Any]) -> RunConfig:
    """Check the values of a whole configuration.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise _translated(error) from None
    return _checked_parts(config)


def _translated(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    # Pydantic puts the name of a validator into the path; keys and indices of the file are what is wanted.
    path = tuple(key for key in first["loc"] if not str(key).startswith("function-"))
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown key {path[-1]!r}{suggestion(path[-1], _section_at(path[:-1]).model_fields)}", path)
    if first["type"] == "missing":
        return ConfigError(f"key {path[-1]!r} is missing", path[:-1])
    return ConfigError(explain(first), path)


def _section_at(path: Keys) -> type[BaseModel]:
    sections: dict[Keys, type[BaseModel]] = {
        (): RunConfig,
        ("train",): TrainConfig,
        ("eval",): EvalConfig,
        ("start",): StartConfig,
        ("classes",): ClassesConfig,
        ("data", "replay"): ReplayConfig,
    }
    return sections[path]


def _checked_parts(config: RunConfig) -> RunConfig:
    """Check every name and argument against what it stands for, and fill in what the registry says suits the data."""
    from dmlkd.models import EmbeddingModel
    from dmlkd.retrieval.metrics import parse

    data = checked_data(config.data)
    model = checked(EmbeddingModel, config.model, ("model",), supplied=("in_channels",))
    check_metric_learning("losses", config.metric_loss, ("metric_loss",), SUPPLIED_TO_LOSSES)
    if config.miner:
        check_metric_learning("miners", config.miner, ("miner",))
    for index, term in enumerate(config.distill):
        _check_term(term, ("distill", index))
    for index, metric in enumerate(config.eval.metrics):
        try:
            parse(metric)
        except ValueError as error:
            raise ConfigError(str(error), ("eval", "metrics", index)) from None
    return config.model_copy(update={"data": data, "model": model})


def checked_data(data: DataConfig) -> DataConfig:
    """Check a data section, and fill in what the registry says suits the data set.

    Raises:
        ConfigError: for an unknown name or argument, or a folder that is missing.
    """
    entry = registry.lookup(registry.DATA, "data set", data.name, ("data", "name"))
    filled = {
        "image_size": data.image_size or entry.image_size,
        "channels": data.channels or entry.channels,
        "transform": data.transform or entry.transform,
        **_reader_arguments(data, registry.load(entry.reader)),
    }
    registry.lookup(registry.TRANSFORMS, "transform", filled["transform"], ("data", "transform"))
    for parts, part in _PARTS_OF_DATA:
        number, among = getattr(data, part), getattr(data, parts)
        if number is not None and among is not None and number >= among:
            raise ConfigError(f"must be from 0 to data.{parts} - 1 = {among - 1}, got {number}", ("data", part))
        if among is None and number != DataConfig.model_fields[part].default:
            raise ConfigError(f"needs data.{parts}, which says of how many", ("data", part))
    return data.model_copy(update=filled)


def _reader_arguments(data: DataConfig, reader: Any) -> dict[str, Any]:
    """The reader's own arguments; ``root`` falls back on the environment variable DMLKD_DATA."""
    arguments = data.arguments
    if "root" in parameters(reader):
        if not arguments.get("root"):
            arguments["root"] = os.environ.get("DMLKD_DATA") or None
        if arguments["root"] is None:
            raise ConfigError("needs a folder: set data.root or the environment variable DMLKD_DATA", ("data",))
        if not Path(arguments["root"]).is_dir():
            raise ConfigError(f"folder {arguments['root']} does not exist", ("data", "root"))
    return checked(reader, arguments, ("data",))


def check_metric_learning(kind: str, part: Part, path: Keys, supplied: Sequence[str] = ()) -> None:
    """Check a part that is a class of pytorch-metric-learning, and the parts among its arguments."""
    target = registry.metric_learning_class(kind, part.name, (*path, "name"))
    arguments = checked(target, part.arguments, path, supplied=[s for s in supplied if s not in part.arguments])
    for key, value in arguments.items():
        if key in registry.PML_PARTS:
            check_metric_learning(registry.PML_PARTS[key], nested_part(value, (*path, key)), (*path, key), supplied)


def nested_part(value: Any, path: Keys) -> Part:
    """An argument that is itself chosen by name."""
    try:
        return Part.model_validate(named(value))
    except ValidationError:
        raise ConfigError(f"must be a name or a mapping with a name, got {value!r}", path) from None


def _check_term(term: TermConfig, path: Keys) -> None:
    entry = registry.lookup(registry.METHODS, "self-distillation method", term.name, (*path, "name"))
    method = registry.load(entry.method)
    schedules = schedules_within(method, term.arguments, path)
    rest = {key: value for key, value in term.arguments.items() if key not in schedules}
    checked(method, rest, path, supplied=(*SUPPLIED_TO_TERMS, *schedules))
    if term.teacher:
        teacher = registry.lookup(registry.TEACHERS, "teacher", term.teacher.name, (*path, "teacher"))
        checked(teacher, term.teacher.arguments, (*path, "teacher"), supplied=SUPPLIED_TO_TERMS)
    for key, part in {**schedules, **({"schedule": term.schedule} if term.schedule else {})}.items():
        schedule = registry.lookup(registry.SCHEDULES, "schedule", part.name, (*path, key))
        checked(schedule, part.arguments, (*path, key))


def schedules_within(method: Callable[..., Any], arguments: Mapping[str, Any], path: Keys) -> dict[str, Part]:
    """Those of a method's arguments that are schedules, chosen by name."""
    taken = registry.METHOD_SCHEDULES & parameters(method).keys()
    return {key: nested_part(value, (*path, key)) for key, value in arguments.items() if key in taken}
