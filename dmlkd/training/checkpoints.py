"""Checkpoints that a run goes on from as if it had not been stopped."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import nn
from typing_extensions import override

from dmlkd.errors import Interrupted, TrainingError, UserError
from dmlkd.files import replacing
from dmlkd.training.finite import check_weights
from dmlkd.training.gathering import seed_all
from dmlkd.training.module import EmbeddingModule
from dmlkd.training.processes import Processes
from dmlkd.training.stopping import Stop
from dmlkd.training.watching import History

LAST, BEST = "last.ckpt", "best.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Writes each checkpoint whole, on the disk, or not at all; reads nothing but tensors and plain values."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            kept = "the one before is kept" if path.exists() else "there is none yet"
            raise TrainingError(f"checkpoint {path} cannot be written: {reason}; {kept}") from error

    @override
    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without unpickling.

    Raises:
        UserError: if it is not there or damaged.
    """
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file: whatever zip, pickle or torch make of it
        raise UserError(f"checkpoint {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return saved


def checkpoint_size(module: nn.Module) -> int:
    """About how many bytes a checkpoint of a module takes, with the two moments of Adam."""
    state = sum(value.nbytes for value in module.state_dict().values() if isinstance(value, torch.Tensor))
    return state + 2 * sum(p.nbytes for p in module.parameters() if p.requires_grad)


class Randomness(Callback):
    """Puts the states of all random number generators into checkpoints, and back.

    Of several processes each has random numbers of its own, for its images, and its own come back if there are as many
    processes as there were.

    Args:
        seed: which the first process has been seeded with.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._saved: dict[str, Any] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not (own := Processes.now()).first:  # Lightning has just seeded all alike
            seed_all(self._seed, own.rank)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"processes": Processes.now().all_of(_generators())}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own, each = Processes.now(), state_dict["processes"]
        self._saved = each[own.rank] if len(each) == own.size else None
        self._restore()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The first iterator over batches, made since the checkpoint was loaded, has drawn a number. An epoch that is
        # resumed had drawn it before the checkpoint; one that is yet to begin draws it after.
        if trainer.fit_loop.epoch_loop.restarting:
            self._restore()
        self._saved = None

    def _restore(self) -> None:
        if self._saved is None:
            return
        torch.set_rng_state(self._saved["torch"])
        if self._saved["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._saved["cuda"])
        np.random.set_state(tuple(self._saved["numpy"]))  # noqa: NPY002
        random.setstate(self._saved["python"])


def _generators() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


class Checkpoints(Checkpoint):
    """Keeps the last state and the best epoch's, each under one name; stops the run where it was asked to.

    Args:
        folder: where they are.
        history: what the best epoch is chosen from.
        monitor: the value of an epoch that is to be highest; None: there is no best.
        every_steps: batches after which the last state is written within an epoch, besides at its end; None: never.
        stop: asked after each batch and each epoch.
    """

    def __init__(
        self, folder: Path, history: History, *, monitor: str | None, every_steps: int | None, stop: Stop
    ) -> None:
        self.folder = folder
        self._history = history
        self._monitor = monitor
        self._every_steps = every_steps
        self._stop = stop

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop.listen_again()  # Lightning's own handler would end a validation on SIGTERM, without a checkpoint

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return  # validation and the epoch's end come next
        signum = self._stop.heard()
        if signum is not None or (self._every_steps and (batch_idx + 1) % self._every_steps == 0):
            self._save(trainer, LAST)
        if signum is not None:
            raise Interrupted(signum)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = self._history.rows
        if self._monitor is not None and best_row(rows, self._monitor) is rows[-1]:
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        self._stop.now()

    def _save(self, trainer: Trainer, name: str) -> None:
        module = trainer.lightning_module
        assert isinstance(module, EmbeddingModule)
        check_weights(module.model, module.objective, step=trainer.global_step - 1)
        trainer.save_checkpoint(self.folder / name, weights_only=False)


def best_row(rows: list[dict[str, float]], monitor: str) -> dict[str, float]:
    """The first of the rows with the highest value."""
    return max(rows, key=lambda row: row[monitor])
