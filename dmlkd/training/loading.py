"""Reading what a finished run left."""

from pathlib import Path
from typing import NamedTuple

from dmlkd.config import RunConfig, load_config
from dmlkd.errors import UserError
from dmlkd.models import ClassifyingModel, EmbeddingModel, load_classes
from dmlkd.models.saved import fit_name, run_folder

CLASSES = "classes.safetensors"
"""File of a run folder: the class scores of the training classes, if the run had them."""

EXITS = "exits"
"""Folder of a run folder, and key of ``metrics.json``: the exits of the network, each a model, if the run had them."""

WHOLE = "whole"
"""Name of the whole network among the exits in ``metrics.json``."""


class FinishedRun(NamedTuple):
    """What a run folder holds.

    Attributes:
        folder: the run's; of a plan, its last fit's.
        config: as resolved.
        model: the saved one, of the reported epoch.
    """

    folder: Path
    config: RunConfig
    model: EmbeddingModel


def load_run(folder: Path) -> FinishedRun:
    """Read a run folder, or that of the last fit of a plan.

    Raises:
        UserError: if it is none, or the run did not finish.
    """
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist")
    folder = run_folder(folder)
    for name in ("config.yaml", "model/config.json", "model/model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a finished run: it has no {name}")
    config, _ = load_config(folder / "config.yaml")
    return FinishedRun(folder, config, EmbeddingModel.from_pretrained(folder / "model"))


def earlier_fit(fit: str, runs: Path | None) -> Path:
    """The run folder of an earlier fit of a plan, which lies beside that of the fit that asks for it.

    Raises:
        UserError: if it is not there or not finished.
    """
    if runs is None:
        raise UserError(f"fit {fit!r} is one of a plan, and this is no run of one")
    folder = runs / fit_name(fit)
    if not (folder / "metrics.json").is_file():
        raise UserError(f"fit {fit!r} is no finished run beside this one, in {runs}")
    return folder


def named_run(*, path: Path | None, fit: str | None, runs: Path | None) -> Path:
    """The folder of a finished run or of a model, named by its path or as an earlier fit of the same plan.

    Raises:
        UserError: if not one of the two is given, or there is no such fit.
    """
    if fit is not None and path is None:
        return earlier_fit(fit, runs)
    if path is None or fit is not None:
        raise UserError("needs either path, a folder, or fit, an earlier fit of the same plan")
    return path


def load_network(folder: Path) -> EmbeddingModel | ClassifyingModel:
    """The model of a finished run or of a model folder, with the run's class scores if it had some.

    Raises:
        UserError: if there is no model, or a file cannot be read.
    """
    model = EmbeddingModel.from_pretrained(folder)
    file = run_folder(folder) / CLASSES
    return ClassifyingModel(model, load_classes(file)) if file.is_file() else model
