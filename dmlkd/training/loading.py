"""Reading what a finished run left."""

from pathlib import Path
from typing import NamedTuple

from dmlkd.config import RunConfig, load_config
from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel


class FinishedRun(NamedTuple):
    """What a run folder holds.

    Attributes:
        config: as resolved.
        model: the saved one, of the reported epoch.
    """

    config: RunConfig
    model: EmbeddingModel


def load_run(folder: Path) -> FinishedRun:
    """Read a run folder.

    Raises:
        UserError: if it is none, or the run did not finish.
    """
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist")
    for name in ("config.yaml", "model/config.json", "model/model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a finished run: it has no {name}")
    config, _ = load_config(folder / "config.yaml")
    return FinishedRun(config, EmbeddingModel.from_pretrained(folder / "model"))
