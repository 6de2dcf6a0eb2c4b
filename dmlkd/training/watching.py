"""The history of a run as a table, and Lightning kept quiet."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from dmlkd.files import write_csv
from dmlkd.training.module import EmbeddingModule
from dmlkd.training.processes import Processes

_EXPECTED = (
    r".*does not have many workers",
    r".*GPU available but not used",
    r".*module\(s\) in eval mode at the start of training",  # teachers are
    r"Total length of `list` across ranks is zero",  # a run may have no validation split
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
