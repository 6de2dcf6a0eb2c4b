"""Teachers that are read from disk."""

from pathlib import Path
from typing import Literal

from dmlkd.distill import FrozenTeacher
from dmlkd.errors import UserError
from dmlkd.models import ClassifyingModel, EmbeddingModel, load_classes

CLASSES = "classes.safetensors"
"""The class scores of the training classes, in the folder of a run that had them."""


def finished_run(
    network: EmbeddingModel | ClassifyingModel,
    *,
    path: Path,
    classes: int,
    mode: Literal["eval", "train"] = "eval",
    chunk_size: int | None = None,
) -> FrozenTeacher:
    """The model of a finished earlier run; its architecture and dimension may differ from the student's.

    Args:
        network: the student.
        path: a run folder, or a model folder written by ``save_pretrained``. It gives class scores if it is the folder
            of a run that had them, of as many classes.
        classes: C, how many classes the student is trained on.
        mode: "eval" or "train", the mode it runs in.
        chunk_size: how many images it runs on at a time; None: on the whole batch.

    Raises:
        UserError: if there is no model, or it takes images of another number of channels than the student.
    """
    model = EmbeddingModel.from_pretrained(path)
    student = network.model if isinstance(network, ClassifyingModel) else network
    if model.in_channels != student.in_channels:
        raise UserError(
            f"{path} takes images of {model.in_channels} channels, the student's have {student.in_channels}"
        )
    scores = load_classes(path / CLASSES) if (path / CLASSES).is_file() else None
    if scores is None or len(scores.centres()) != classes:
        return FrozenTeacher(model, mode=mode, chunk_size=chunk_size)
    return FrozenTeacher(ClassifyingModel(model, scores), mode=mode, chunk_size=chunk_size)
