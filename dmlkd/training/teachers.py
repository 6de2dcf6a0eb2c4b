"""Teachers that are read from disk."""

from pathlib import Path
from typing import Literal

from dmlkd.distill import FrozenTeacher
from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel


def finished_run(
    network: EmbeddingModel,
    *,
    path: Path,
    mode: Literal["eval", "train"] = "eval",
    chunk_size: int | None = None,
) -> FrozenTeacher:
    """The model of a finished earlier run; its architecture and dimension may differ from the student's.

    Args:
        network: the student.
        path: a run folder, or a model folder written by ``save_pretrained``.
        mode: "eval" or "train", the mode it runs in.
        chunk_size: how many images it runs on at a time; None: on the whole batch.

    Raises:
        UserError: if there is no model, or it takes images of another number of channels than the student.
    """
    model = EmbeddingModel.from_pretrained(path)
    if model.in_channels != network.in_channels:
        raise UserError(
            f"{path} takes images of {model.in_channels} channels, the student's have {network.in_channels}"
        )
    return FrozenTeacher(model, mode=mode, chunk_size=chunk_size)
