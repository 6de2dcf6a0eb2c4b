"""Watching a run: its history as a table, progress bars on a terminal and plain lines elsewhere."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

from dmlkd.files import write_csv
from dmlkd.training.module import EmbeddingModule
from dmlkd.training.processes import Processes

_EXPECTED = (
    r".*does not have many workers",
    r".*GPU available but not used",
    r".*module\(s\) in eval mode at the start of training",  # teachers are
    r".*defined a `validation_step` but have no `val_dataloader`",  # a run may have no validation split
    r".*isinstance\(treespec, LeafSpec\)",
    r".*sync_dist=True",  # what is logged is the same in all processes
    r".*ended before the epoch ended and your dataloader is not resumable",  # the sampler is
)


class History(Callback):
    """Collects what was logged in each epoch, and rewrites a CSV file with it.

    Args:
        path: of the file; whole after every epoch.

    Attributes:
        rows: one dictionary an epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, EmbeddingModule)
        self.rows.append({"epoch": trainer.current_epoch, **pl_module.epoch_values()})
        self._write()

    def _write(self) -> None:
        if Processes.now().first:
            write_csv(self.path, self.rows)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self._write()  # a row of an epoch that was cut short may be there


class PlainProgress(Callback):
    """One line an epoch on standard error: losses, validation scores, seconds."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()  # an epoch that is resumed does not start again

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, EmbeddingModule)
        shown = {name: value for name, value in pl_module.epoch_values().items() if not name.startswith("weight/")}
        values = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        seconds = time.perf_counter() - self._started
        if trainer.is_global_zero:
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {values}  {seconds:.1f} s", file=sys.stderr)


def progress() -> Callback:
    """A progress bar if standard output is a terminal, else plain lines."""
    return RichProgressBar() if sys.stdout.isatty() else PlainProgress()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Leave out what Lightning says about itself and its advice on worker processes and accelerators."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
