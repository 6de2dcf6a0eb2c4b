"""Teachers that are read from disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dmlkd.distill import FrozenTeacher, OutOfFoldTeacher
from dmlkd.errors import UserError
from dmlkd.models import ClassifyingModel, EmbeddingModel, ExitingModel, embedding_model
from dmlkd.models.classes import SavedClasses
from dmlkd.models.saved import run_folder
from dmlkd.signals import BEFORE_RELU, Need
from dmlkd.training.loading import earlier_fit, load_network, named_run
from dmlkd.training.recorded import LEFT_OUT, recorded_rows, trained_rows

Network = EmbeddingModel | ExitingModel | ClassifyingModel

_SCORES: tuple[Need, ...] = ("logits", "subclass_logits")


def finished_run(
    network: Network,
    *,
    classes: int,
    path: Path | None = None,
    fit: str | None = None,
    trained_classes: bool = False,
    mode: Literal["eval", "train"] = "eval",
    chunk_size: int | None = None,
    runs: Path | None = None,
    paths: NDArray[np.str_] | None = None,
    targets: NDArray[np.int64] | None = None,
) -> FrozenTeacher:
    """The model of a finished earlier run; its architecture and dimension may differ from the student's.

    Args:
        network: the student.
        classes: C, how many classes the student is trained on.
        path: a run folder, or a model folder written by ``save_pretrained``. It gives class scores if it is the folder
            of a run that had them, of as many classes, and scores of subclasses if there are as many of each class.
        fit: instead, the name of an earlier fit of the same plan.
        trained_classes: score only classes that the run had images of (``data.task``): minus infinity for the others,
            which "discriminative", "sril" and "posterior" (by "kl") understand.
        mode: "eval" or "train", the mode it runs in.
        chunk_size: how many images it runs on at a time; None: on the whole batch.
        runs: where earlier fits of the same plan lie; None: there are none.
        paths: (N,) of the training images, and
        targets: (N,) their classes, for ``trained_classes``.

    Raises:
        UserError: if there is no model, or it takes images of another number of channels than the student, or has no
            class scores, or trained on other images, where its trained classes are asked for.
    """
    folder = named_run(path=path, fit=fit, runs=runs)
    taught = _for_student(load_network(folder), str(fit or path), network)
    if trained_classes:
        _score_trained(taught, run_folder(folder), str(fit or path), paths, targets)
    teacher = FrozenTeacher(taught, mode=mode, chunk_size=chunk_size)
    teacher.lacks = _misfits(str(fit or path), taught, classes=classes, student=network)
    teacher.gives -= teacher.lacks.keys()
    return teacher


def out_of_fold(
    network: Network,
    *,
    fits: list[str],
    classes: int,
    paths: NDArray[np.str_],
    runs: Path | None = None,
    mode: Literal["eval", "train"] = "eval",
    chunk_size: int | None = None,
) -> OutOfFoldTeacher:
    """Earlier fits of the same plan, each of which teaches the images that it left out (``data.image_fold``).

    Args:
        network: the student.
        fits: their names; each training image must have been left out by just one of them.
        classes: C, how many classes the student is trained on.
        paths: (N,) of the training images.
        runs: where earlier fits of the same plan lie.
        mode: "eval" or "train", the mode they run in.
        chunk_size: how many images one runs on at a time; None: on its whole part of the batch.

    Raises:
        UserError: if a fit is not there, or it left out other images.
    """
    if not fits:
        raise UserError("fits must name at least one earlier fit, got none")
    folders = [earlier_fit(fit, runs) for fit in fits]
    teaches = _left_out_by(folders, paths)
    networks = {
        name: _for_student(load_network(folder), name, network) for name, folder in zip(fits, folders, strict=True)
    }
    teacher = OutOfFoldTeacher(list(networks.values()), torch.from_numpy(teaches), mode=mode, chunk_size=chunk_size)
    teacher.lacks = {
        need: why
        for name, taught in networks.items()
        for need, why in _misfits(name, taught, classes=classes, student=network).items()
    }
    teacher.gives -= teacher.lacks.keys()
    return teacher


def _score_trained(
    taught: Network, folder: Path, name: str, paths: NDArray[np.str_] | None, targets: NDArray[np.int64] | None
) -> None:
    """Leave the other classes' scores out of a network's."""
    if not isinstance(taught, ClassifyingModel) or not isinstance(taught.classes, SavedClasses):
        raise UserError(f"{name} has no class scores: no term of its run read any")
    assert paths is not None
    assert targets is not None
    known = np.unique(targets[trained_rows(folder, paths)])
    if len(taught.classes.centres()) <= known.max():
        return  # of another number of classes, which is said of all its scores
    taught.classes.only(torch.from_numpy(known))


def _for_student(taught: Network, name: str, student: Network) -> Network:
    theirs, own = (embedding_model(network).in_channels for network in (taught, student))
    if theirs != own:
        raise UserError(f"{name} takes images of {theirs} channels, the student's have {own}")
    return taught


def _misfits(name: str, taught: Network, *, classes: int, student: Network) -> dict[Need, str]:
    """What is not there or cannot be compared with the student's, each with the reason."""
    return _other_stages(name, taught, student) | _other_scores(name, taught, classes=classes, student=student)


def _other_stages(name: str, taught: Network, student: Network) -> dict[Need, str]:
    if not taught.gives.issuperset(BEFORE_RELU):
        return dict.fromkeys(BEFORE_RELU, f"the stages of {name} do not end in batch norm and ReLU")
    theirs, own = (network.trunk.stage_channels for network in (taught, student))
    if theirs != own:
        return dict.fromkeys(BEFORE_RELU, f"{name} has stages of {theirs} channels, the student of {own}")
    return {}


def _other_scores(name: str, taught: Network, *, classes: int, student: Network) -> dict[Need, str]:
    if not isinstance(taught, ClassifyingModel):
        return dict.fromkeys(_SCORES, f"{name} has no class scores: no term of its run read any")
    found, subclasses, _ = taught.classes.centres().shape
    if found != classes:
        return dict.fromkeys(_SCORES, f"{name} scores {found} classes, the student is trained on {classes}")
    if isinstance(student, ClassifyingModel) and (own := student.classes.centres().shape[1]) != subclasses:
        return {"subclass_logits": f"{name} has {subclasses} subclasses of each class, the student {own}"}
    return {}


def _left_out_by(folders: Sequence[Path], paths: NDArray[np.str_]) -> NDArray[np.int64]:
    """For each training image (N,) which of the runs left it out."""
    found = np.full(len(paths), -1)
    for index, folder in enumerate(folders):
        rows = _left_out(folder / LEFT_OUT, paths)
        if (found[rows] >= 0).any():
            row = rows[found[rows] >= 0][0]
            raise UserError(f"{folders[found[row]].name} and {folder.name} both left out row {row}, {paths[row]}")
        found[rows] = index
    if (found < 0).any():
        row = int((found < 0).argmax())
        raise UserError(f"{int((found < 0).sum())} images were left out by none of the fits, such as {paths[row]}")
    return found


def _left_out(path: Path, paths: NDArray[np.str_]) -> NDArray[np.int64]:
    if not path.is_file():
        raise UserError(f"{path.parent.name} left out no images: set data.image_folds and data.image_fold for it")
    return recorded_rows(path, paths)
