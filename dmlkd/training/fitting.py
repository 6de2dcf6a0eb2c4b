"""``fit``: one training run in Lightning's Trainer."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import DataLoader
from typing_extensions import override

from dmlkd.config import TrainConfig
from dmlkd.data import ClassBalancedBatchSampler, DataSplits
from dmlkd.data.loading import clear_errors, loader
from dmlkd.models import compile_trunks
from dmlkd.signals import Batch
from dmlkd.training.building import build_sampler
from dmlkd.training.module import EmbeddingModule
from dmlkd.training.objective import Objective
from dmlkd.training.rates import lr_schedule
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
        """Put the best epoch's weights into the model, in place."""
        saved = torch.load(self.checkpoints / "best.ckpt", map_location="cpu", weights_only=True)["state_dict"]
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
) -> FitResult:
    """Train a model in place; write ``log.csv``, ``tensorboard/`` and ``checkpoints/`` below ``out``.

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

    Raises:
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
    )
    if train.channels_last:
        module.to(memory_format=torch.channels_last)
    if train.compile:
        compile_trunks(module)
    shown = progress()
    history = History(out / "log.csv")
    with quiet_lightning(), clear_errors():
        trainer = Trainer(
            max_epochs=train.epochs,
            accelerator=train.accelerator,
            devices=1,
            precision=train.precision,
            logger=TensorBoardLogger(out, name="tensorboard", version=""),
            callbacks=[_checkpoint(out / "checkpoints", validated=data.val is not None), history, shown, *callbacks],
            enable_progress_bar=isinstance(shown, ProgressBar),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        loaders = _Loaders if data.val is None else _ValidatedLoaders
        trainer.fit(module, datamodule=loaders(data, sampler, train, workers))
    best = max(history.rows, key=lambda row: row[MONITOR])["epoch"] if data.val else None
    return FitResult(history.rows, train.epochs - 1, None if best is None else int(best), out / "checkpoints")


class _Loaders(LightningDataModule):
    """The loaders of a run, and what is done to a training batch once it is on the device."""

    def __init__(self, data: DataSplits, sampler: ClassBalancedBatchSampler, train: TrainConfig, workers: int) -> None:
        super().__init__()
        self._data = data
        self._train = loader(data.train, batch_sampler=sampler, workers=workers, persistent=True)
        self._batch_size = train.batch_size
        self._memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self._workers = workers

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
        return loader(self._data.val, batch_size=self._batch_size, workers=self._workers, persistent=True)


def _checkpoint(folder: Path, *, validated: bool) -> ModelCheckpoint:
    """Keep the last epoch, and with validation the best."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=MONITOR if validated else None,
        mode="max",
        save_top_k=1 if validated else 0,
        save_last=True,
        enable_version_counter=False,
    )


def optimizer(train: TrainConfig) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """What makes the optimiser of a training section, from parameter groups."""
    return functools.partial(_OPTIMIZERS[train.optimizer], lr=train.lr, weight_decay=train.weight_decay)
