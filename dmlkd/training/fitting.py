"""``fit``: one training run in Lightning's Trainer."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from dmlkd.config import TrainConfig
from dmlkd.data import DataSplits, EpochBatchSampler
from dmlkd.data.loading import clear_errors
from dmlkd.errors import UserError
from dmlkd.models import compile_trunks
from dmlkd.training.checkpoints import (
    BEST,
    LAST,
    CheckpointFiles,
    Checkpoints,
    Randomness,
    best_row,
    checkpoint_size,
    read_checkpoint,
)
from dmlkd.training.determinism import determinism
from dmlkd.training.early_stopping import EarlyStop
from dmlkd.training.faults import clear_faults
from dmlkd.training.folder import check_space
from dmlkd.training.loaders import EmbeddingData
from dmlkd.training.loggers import loggers
from dmlkd.training.module import AVERAGED, MODEL, EmbeddingModule
from dmlkd.training.objective import Objective
from dmlkd.training.processes import Processes, trainer_arguments
from dmlkd.training.progress import progress
from dmlkd.training.rates import lr_schedule
from dmlkd.training.settings import check_settings, checkpointed_trunk
from dmlkd.training.skipping import SkippedSteps
from dmlkd.training.stopping import Stop
from dmlkd.training.watching import History, quiet_lightning

MONITOR = "val/map@r"

_OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": functools.partial(SGD, momentum=0.9),
}


@dataclass(frozen=True)
class FitResult:
    """What a training run left.

    Attributes:
        history: one dictionary an epoch, as in ``log.csv``.
        last_epoch: counted from 0; its weights are in the model and in ``checkpoints/last.ckpt``.
        best_epoch: the one with the highest validation MAP@R, whose weights are in ``checkpoints/best.ckpt``; None
            without a validation split.
        checkpoints: the folder of the checkpoints.
        log: the history as a CSV file.
    """

    history: list[dict[str, float]]
    last_epoch: int
    best_epoch: int | None
    checkpoints: Path
    log: Path

    @property
    def metrics(self) -> dict[str, float]:
        """What was logged in the best epoch, or in the last if there is no best."""
        return self.history[self.last_epoch if self.best_epoch is None else self.best_epoch]

    def load_best(self, model: nn.Module) -> None:
        """Put the best epoch's weights, averaged ones if there are any, into the model, in place, in all processes.

        Raises:
            UserError: if there was no validation to choose it by, or the checkpoint cannot be read.
        """
        if self.best_epoch is None:
            raise UserError("there is no best epoch without a validation split")
        saved = Processes.now().from_first(lambda: read_checkpoint(self.checkpoints / BEST)["state_dict"])
        prefix = AVERAGED if any(name.startswith(AVERAGED) for name in saved) else MODEL
        model.load_state_dict({k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)})


def fit(
    model: nn.Module,
    objective: Objective,
    data: DataSplits,
    train: TrainConfig,
    *,
    out: Path,
    sampler: EpochBatchSampler | None = None,
    workers: int = 0,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    stop: Stop | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train a model in place; write ``log.csv``, ``tensorboard/`` and ``checkpoints/`` below ``out``.

    Where torch.distributed has several processes, all must call this, each with its share of the batches as its
    ``sampler``; they train one model, and the first writes.

    A resumed training ends, on the CPU, with the bits it would have ended with unbroken, if all else is given as it
    was the first time.

    Args:
        model: an :class:`~dmlkd.models.EmbeddingModel` or any module with ``signals``; left with the last
            epoch's weights.
        objective: metric loss and distillation terms, its teachers made for this model.
        data: training and validation images.
        train: epochs, batches, optimiser, precision, seed of the sampler.
        out: an existing folder.
        sampler: which images make up a batch; None: as ``train`` says.
        workers: processes that load images; 0: this one.
        callbacks: further callbacks for Lightning's Trainer.
        resume: go on from the last checkpoint below ``out``, if there is one.
        stop: asked after each batch whether to write a checkpoint and end.
        quiet: show no progress.

    Raises:
        Interrupted: if ``stop`` said so.
        TrainingError: if a loss, a gradient or a weight is not finite, memory is not enough, a backbone cannot be
            compiled, or a checkpoint cannot be written.
        UserError: if ``out`` is no folder, or its disk has no room for the checkpoints.
        ConfigError: if the batch is not a multiple of the images a class, or a setting of ``train`` does not suit the
            model or the data.
        DataError: if there are fewer classes than a batch needs.
    """
    if not out.is_dir():
        raise UserError(f"{out} is no folder, so a training cannot be written there")
    check_settings(train, validated=data.val is not None)
    module = _module(model, objective, train)
    history = History(out / "log.csv")
    stop = stop or Stop(Processes.now().largest)
    checkpoints = Checkpoints(
        out / "checkpoints",
        history,
        monitor=None if data.val is None else MONITOR,
        every_steps=train.checkpoint_every_steps,
        stop=stop,
    )
    added: list[Callback] = [] if module.skips is None else [SkippedSteps(module.skips, out / "non_finite.csv")]
    if train.early_stop_epochs is not None:
        added.append(EarlyStop(MONITOR, train.early_stop_epochs))
    last = checkpoints.folder / LAST
    # Both are written over by way of a temporary file.
    missing = sum(not (checkpoints.folder / name).exists() for name in (LAST, BEST)[: 1 if data.val is None else 2])
    Processes.now().from_first(lambda: check_space(out, (missing + 1) * checkpoint_size(module)))
    with (
        quiet_lightning(),
        clear_errors(),
        clear_faults(train),
        _switched(module, train),
        loggers(train, out) as logged,
        stop.deferred(),
    ):
        trainer = _trainer(
            train, logged, [history, Randomness(train.seed), *added, *callbacks, checkpoints], quiet=quiet
        )
        trainer.fit(
            module,
            datamodule=EmbeddingData(data, train, sampler=sampler, workers=workers),
            ckpt_path=last if resume and last.is_file() else None,
        )
    if module.average is not None:
        model.load_state_dict(module.average.averaged.state_dict())
    best = None if data.val is None else int(best_row(history.rows, MONITOR)["epoch"])
    return FitResult(history.rows, int(history.rows[-1]["epoch"]), best, checkpoints.folder, history.path)


def _module(model: nn.Module, objective: Objective, train: TrainConfig) -> EmbeddingModule:
    module = EmbeddingModule(
        model,
        objective,
        optimizer=optimizer(train),
        epochs=train.epochs,
        metric_loss_lr=train.metric_loss_lr,
        trunk_lr=train.trunk_lr,
        lr_schedule=lr_schedule(train),
        head_only_epochs=train.head_only_epochs,
        chunk_size=train.chunk_size,
        skip_non_finite=train.skip_non_finite,
        ema_decay=train.ema_decay,
        seed=train.seed,
    )
    if train.channels_last:
        module.to(memory_format=torch.channels_last)
    if train.compile:
        compile_trunks(module)
    return module


@contextmanager
def _switched(module: EmbeddingModule, train: TrainConfig) -> Iterator[None]:
    """Switches of torch and of the backbone that hold while training."""
    trunk = checkpointed_trunk(train, module.model)
    with determinism(train.deterministic):
        if trunk is None:
            yield
            return
        trunk.checkpoint_stages()
        try:
            yield
        finally:
            trunk.checkpoint_stages(False)


def _trainer(train: TrainConfig, logged: list[Logger], callbacks: list[Callback], *, quiet: bool) -> Trainer:
    shown = [] if quiet else [progress()]
    return Trainer(
        max_epochs=train.epochs,
        accelerator=train.accelerator,
        **trainer_arguments(train),
        precision=train.precision,
        logger=logged,
        callbacks=[*shown, *callbacks],
        plugins=[CheckpointFiles()],
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in shown),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def optimizer(train: TrainConfig) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """What makes the optimiser of a training section, from parameter groups."""
    return functools.partial(_OPTIMIZERS[train.optimizer], lr=train.lr, weight_decay=train.weight_decay)
