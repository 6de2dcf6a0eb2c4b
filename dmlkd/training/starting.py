"""Starting a model, and its metric loss, from the weights of an earlier run."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from dmlkd.config import StartConfig
from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel
from dmlkd.models.saved import run_folder
from dmlkd.training.checkpoints import BEST, LAST, read_checkpoint
from dmlkd.training.loading import earlier_fit, named_run

_LOSS = "objective.metric_loss."


def start_model(*, model: EmbeddingModel, start: StartConfig, runs: Path | None) -> None:
    """Put the weights of an earlier model into a model, in place.

    Args:
        model: as its constructor left it.
        start: whose weights, and whether the trunk's alone.
        runs: where earlier fits of the same plan lie; None: there are none.

    Raises:
        UserError: if there is no such model, or its weights are of other names or shapes.
    """
    path = None if start.path is None else Path(start.path)
    theirs = _part(
        EmbeddingModel.from_pretrained(named_run(path=path, fit=start.fit, runs=runs)), start.part
    ).state_dict()
    own = _part(model, start.part)
    name = f"the {start.part} of {start.fit or start.path}"
    advice = "; start.part = trunk takes no head" if start.part == "model" else ""
    _check_shapes(name, own.state_dict(), theirs, advice)
    own.load_state_dict(theirs)


def start_metric_loss(*, metric_loss: nn.Module, start: StartConfig, runs: Path | None) -> None:
    """Put the weights of an earlier run's metric loss, such as proxies, into a metric loss, in place.

    They are those of the epoch whose model the run reports.

    Args:
        metric_loss: as its constructor left it.
        start: of which run.
        runs: where earlier fits of the same plan lie; None: there are none.

    Raises:
        UserError: if there is no such run, or its weights are of other names or shapes, or neither has any.
    """
    folder = earlier_fit(start.fit, runs) if start.fit is not None else run_folder(Path(start.path or ""))
    try:
        reported = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["epoch"]["reported"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{folder} is no finished run, whose metric loss could be taken over") from None
    saved = read_checkpoint(folder / "checkpoints" / (BEST if reported == "best" else LAST))["state_dict"]
    own = dict(metric_loss.named_parameters())
    theirs = {name.removeprefix(_LOSS): value for name, value in saved.items() if name.startswith(_LOSS)}
    if not own:
        raise UserError(f"{type(metric_loss).__name__} has no weights to take over: leave out start.metric_loss")
    theirs = {name: value for name, value in theirs.items() if name in own}  # its buffers are no weights
    _check_shapes(f"the metric loss of {start.fit or start.path}", own, theirs)
    metric_loss.load_state_dict(theirs, strict=False)


def _part(model: EmbeddingModel, part: str) -> nn.Module:
    return model.trunk if part == "trunk" else model


def _check_shapes(name: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], advice: str = "") -> None:
    for key in {**ours, **theirs}:
        here, there = (list(state[key].shape) if key in state else "not there" for state in (ours, theirs))
        if here != there:
            hint = "" if key.startswith("trunk.") else advice
            raise UserError(f"{name} is another: {key} is {here} here, {there} there{hint}")
