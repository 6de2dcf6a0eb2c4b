"""From a checked configuration to live parts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dmlkd.config import RunConfig, TrainConfig, constructed
from dmlkd.data import DataSplits, EpochBatchSampler
from dmlkd.errors import ConfigError
from dmlkd.models import EmbeddingModel, embedding_model, exits_of
from dmlkd.training.building_data import build_data, build_sampler
from dmlkd.training.building_losses import Student, build_losses
from dmlkd.training.objective import Objective
from dmlkd.training.processes import check
from dmlkd.training.rates import lr_schedule
from dmlkd.training.replay import with_memory
from dmlkd.training.settings import check_settings, checkpointed_trunk
from dmlkd.training.starting import start_model


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of."""

    data: DataSplits
    student: Student
    objective: Objective
    sampler: EpochBatchSampler

    @property
    def model(self) -> EmbeddingModel:
        """What is measured and saved: the student without its exits and class scores."""
        return embedding_model(self.student)

    def encoders(self) -> dict[str, EmbeddingModel]:
        """Further models that are measured and saved: each of its exits as it is now."""
        exiting = exits_of(self.student)
        return {} if exiting is None else exiting.encoders()


def build(config: RunConfig, runs: Path | None = None, *, recorded: Path | None = None) -> Parts:
    """Build data, model, objective and sampler.

    Args:
        config: the configuration.
        runs: the folder that the run folder is in, where earlier fits of the same plan lie; None: there are none.
        recorded: the run's own record of the images it replays, which is taken if it is there.

    Raises:
        ConfigError: if one of them refuses its arguments, or they do not fit together.
        DataError: if the images are not there, incomplete or too few.
    """
    check_train(config.train)
    data = build_data(config.data, seed=config.train.seed)
    if config.data.replay is not None:
        data = constructed(with_memory, {}, ("data", "replay"), config=config, data=data, runs=runs, recorded=recorded)
    check_settings(config.train, validated=data.val is not None)
    sampler = build_sampler(data.train.targets, config.train, rows=data.trained)
    model = build_model(config, in_channels=data.train.channels, runs=runs)
    checkpointed_trunk(config.train, model)
    _check_smooth_ap(config, data.train.targets if data.trained is None else data.train.targets[data.trained])
    train = data.train
    known = {"paths": train.paths, "targets": train.targets, "replayed": data.replayed}
    classes = int(train.targets.max()) + 1
    student, objective = build_losses(config, model, classes=classes, rows=len(train), known=known, runs=runs)
    return Parts(data, student, objective, sampler)


def build_model(config: RunConfig, *, in_channels: int, runs: Path | None = None) -> EmbeddingModel:
    """The model that a configuration asks for, with the weights that it starts from."""
    model = constructed(EmbeddingModel, config.model, ("model",), in_channels=in_channels)
    if config.start is not None:
        constructed(start_model, {}, ("start",), model=model, start=config.start, runs=runs)
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
