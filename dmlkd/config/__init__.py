"""The configuration of a run: sections, reading and checking."""

from dmlkd.config.load import checked_data, load_config, nested_part, schedules_within
from dmlkd.config.plan import PlanConfig, PlanFit, load_training, same_images
from dmlkd.config.schema import (
    ClassesConfig,
    DataConfig,
    EvalConfig,
    ExitsConfig,
    Part,
    ReplayConfig,
    RunConfig,
    StartConfig,
    TermConfig,
    TrainConfig,
)
from dmlkd.config.signatures import checked, constructed, parameters
from dmlkd.config.yaml_source import YamlSource

__all__ = [
    "ClassesConfig",
    "DataConfig",
    "EvalConfig",
    "ExitsConfig",
    "Part",
    "PlanConfig",
    "PlanFit",
    "ReplayConfig",
    "RunConfig",
    "StartConfig",
    "TermConfig",
    "TrainConfig",
    "YamlSource",
    "checked",
    "checked_data",
    "constructed",
    "load_config",
    "load_training",
    "nested_part",
    "parameters",
    "same_images",
    "schedules_within",
]
