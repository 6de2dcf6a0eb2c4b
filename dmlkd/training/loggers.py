"""Where a training is logged besides its own CSV file: TensorBoard, and Weights & Biases if asked for."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from dmlkd.config import TrainConfig
from dmlkd.files import write_text
from dmlkd.training.processes import Processes


@contextmanager
def loggers(train: TrainConfig, out: Path) -> Iterator[list[Logger]]:
    """The loggers of a training section; afterwards Weights & Biases has everything, and takes a next run apart.

    Args:
        train: whose ``wandb`` is the project's name.
        out: the run folder; its ``wandb_id`` lets a resumed run go on in the same place.
    """
    board = TensorBoardLogger(out, name="tensorboard", version="")
    if train.wandb is None:
        yield [board]
        return
    wandb = WandbLogger(
        project=train.wandb,
        name=out.name,
        save_dir=out,
        id=Processes.now().from_first(lambda: _wandb_id(out / "wandb_id")),
    )
    try:
        yield [board, wandb]
    finally:
        wandb.experiment.finish()


def _wandb_id(path: Path) -> str:
    if not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8").strip()
