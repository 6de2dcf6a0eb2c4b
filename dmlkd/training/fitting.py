"""``fit``: one training run in Lightning's Trainer."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import DataLoader
from typing_extensions import override

from dmlkd.config import TrainConfig
from dmlkd.data import BatchShare, ClassBalancedBatchSampler, DataSplits
from dmlkd.data.loading import clear_errors, loader
from dmlkd.models import compile_trunks
from dmlkd.signals import Batch
from dmlkd.training.building import build_sampler
from dmlkd.training.checkpoints import BEST, LAST, CheckpointFiles, Checkpoints, Randomness, best_row, read_checkpoint
from dmlkd.training.module import EmbeddingModule
from dmlkd.training.objective import Objective
from dmlkd.training.processes import Processes, trainer_arguments
from dmlkd.training.rates import lr_schedule
from dmlkd.training.stopping import Stop
from dmlkd.training.watching import History, progress, quiet_lightning

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
    """

    history: list[dict[str, float]]
    last_epoch: int
    best_epoch: int | None
    checkpoints: Path

    def load_best(self, model: nn.Module) -> None:
        """Put the best epoch's weights into the model, in place, in all processes."""
        saved = Processes.now().from_first(lambda: read_checkpoint(self.checkpoints / BEST)["state_dict"])
        prefix = "model."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)})


def fit(
    model: nn.Module,
    objective: Objective,
    data: DataSplits,
    train: TrainConfig,
    *,
    out: Path,
    sampler: ClassBalancedBatchSampler | None = None,
    workers: int = 0,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    stop: Stop | None = None,
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

    Raises:
        Interrupted: if ``stop`` said so.
        TrainingError: if a loss or a weight is not finite, or a checkpoint cannot be written.
        ConfigError: if the batch is not a multiple of the images a class.
        DataError: if there are fewer classes than a batch needs.
    """
    sampler = sampler or build_sampler(data.train, train)
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
        seed=train.seed,
    )
    if train.channels_last:
        module.to(memory_format=torch.channels_last)
    if train.compile:
        compile_trunks(module)
    history = History(out / "log.csv")
    stop = stop or Stop(Processes.now().largest)
    checkpoints = Checkpoints(
        out / "checkpoints",
        history,
        monitor=None if data.val is None else MONITOR,
        every_steps=train.checkpoint_every_steps,
        stop=stop,
    )
    last = checkpoints.folder / LAST
    with quiet_lightning(), clear_errors(), stop.deferred():
        trainer = _trainer(train, out, [history, Randomness(train.seed), *callbacks, checkpoints])
        loaders = _Loaders if data.val is None else _ValidatedLoaders
        trainer.fit(
            module,
            datamodule=loaders(data, sampler, train, workers),
            ckpt_path=last if resume and last.is_file() else None,
        )
    best = None if data.val is None else int(best_row(history.rows, MONITOR)["epoch"])
    return FitResult(history.rows, train.epochs - 1, best, checkpoints.folder)


def _trainer(train: TrainConfig, out: Path, callbacks: list[Callback]) -> Trainer:
    shown = progress()
    return Trainer(
        max_epochs=train.epochs,
        accelerator=train.accelerator,
        **trainer_arguments(train),
        precision=train.precision,
        logger=TensorBoardLogger(out, name="tensorboard", version=""),
        callbacks=[shown, *callbacks],
        plugins=[CheckpointFiles()],
        enable_progress_bar=isinstance(shown, ProgressBar),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


class _Loaders(LightningDataModule):
    """The loaders of a run, and what is done to a training batch once it is on the device."""

    def __init__(self, data: DataSplits, sampler: ClassBalancedBatchSampler, train: TrainConfig, workers: int) -> None:
        super().__init__()
        self._data = data
        self._sampler = sampler
        self._train = loader(data.train, batch_sampler=sampler, workers=workers, persistent=True)
        self._batch_size = train.batch_size
        self._memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self._workers = workers

    @override
    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.trainer.is_last_batch:
            return {"epoch": self.trainer.current_epoch + 1, "batches": 0}
        return {"epoch": self.trainer.current_epoch, "batches": done}

    @override
    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._sampler.resume(state_dict["epoch"], state_dict["batches"])

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        return self._train

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        training = self.trainer is not None and self.trainer.training
        images = batch.images
        if self._data.on_device is not None and training:
            images = self._data.on_device(images)
        return batch._replace(images=images.contiguous(memory_format=self._memory_format))


class _ValidatedLoaders(_Loaders):
    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        assert self._data.val is not None
        processes = Processes.now()
        batches = BatchShare(
            len(self._data.val), batch_size=self._batch_size, num_replicas=processes.size, rank=processes.rank
        )
        return loader(self._data.val, batch_sampler=batches, workers=self._workers, persistent=True)


def optimizer(train: TrainConfig) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """What makes the optimiser of a training section, from parameter groups."""
    return functools.partial(_OPTIMIZERS[train.optimizer], lr=train.lr, weight_decay=train.weight_decay)
