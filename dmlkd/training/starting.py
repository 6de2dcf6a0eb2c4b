"""Starting a model from the weights of an earlier one."""

from pathlib import Path

from torch import nn

from dmlkd.config import StartConfig
from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel
from dmlkd.training.loading import earlier_model


def start_from(*, model: EmbeddingModel, start: StartConfig, runs: Path | None) -> None:
    """Put the weights of an earlier model into a model, in place.

    Args:
        model: as its constructor left it.
        start: whose weights, and whether the trunk's alone.
        runs: where earlier fits of the same plan lie; None: there are none.

    Raises:
        UserError: if there is no such model, or its weights are of other names or shapes.
    """
    path = None if start.path is None else Path(start.path)
    theirs = _weights(earlier_model(path=path, fit=start.fit, runs=runs), start.part).state_dict()
    own = _weights(model, start.part)
    ours = own.state_dict()
    for name in {**ours, **theirs}:
        shapes = [list(s[name].shape) if name in s else "not there" for s in (ours, theirs)]
        if shapes[0] != shapes[1]:
            advice = "" if name.startswith("trunk.") or start.part == "trunk" else "; start.part = trunk takes no head"
            raise UserError(
                f"the {start.part} of {start.fit or start.path} is another: {name} is {shapes[0]} here, "
                f"{shapes[1]} there{advice}"
            )
    own.load_state_dict(theirs)


def _weights(model: EmbeddingModel, part: str) -> nn.Module:
    return model.trunk if part == "trunk" else model
