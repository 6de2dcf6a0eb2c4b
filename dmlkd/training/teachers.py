"""Teachers that are read from disk."""

from pathlib import Path
from typing import Literal

from dmlkd.distill import FrozenTeacher
from dmlkd.errors import UserError
from dmlkd.models import ClassifyingModel, ClassScores, EmbeddingModel, load_classes
from dmlkd.signals import Need

CLASSES = "classes.safetensors"
"""The class scores of the training classes, in the folder of a run that had them."""

_SCORES: tuple[Need, ...] = ("logits", "subclass_logits")


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
            of a run that had them, of as many classes, and scores of subclasses if there are as many of each class.
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
    if not (path / CLASSES).is_file():
        teacher = FrozenTeacher(model, mode=mode, chunk_size=chunk_size)
        teacher.lacks = dict.fromkeys(_SCORES, f"{path} has no class scores: no term of its run read any")
        return teacher
    scores = load_classes(path / CLASSES)
    teacher = FrozenTeacher(ClassifyingModel(model, scores), mode=mode, chunk_size=chunk_size)
    teacher.lacks = _misfits(path, scores, classes=classes, network=network)
    teacher.gives -= teacher.lacks.keys()
    return teacher


def _misfits(
    path: Path, scores: ClassScores, *, classes: int, network: EmbeddingModel | ClassifyingModel
) -> dict[Need, str]:
    """The class scores that cannot be compared with the student's, each with the reason."""
    found, subclasses, _ = scores.centres().shape
    if found != classes:
        return dict.fromkeys(_SCORES, f"{path} scores {found} classes, the student is trained on {classes}")
    if isinstance(network, ClassifyingModel) and (own := network.classes.centres().shape[1]) != subclasses:
        return {"subclass_logits": f"{path} has {subclasses} subclasses of each class, the student {own}"}
    return {}
