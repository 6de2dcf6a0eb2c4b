"""Settings of a training that do not go together, refused before anything is done."""

import importlib.util

from torch import nn

from dmlkd.config import TrainConfig
from dmlkd.errors import ConfigError
from dmlkd.models import Trunk


def check_settings(train: TrainConfig, *, validated: bool) -> None:
    """Refuse settings that do not go together, or that this machine lacks something for.

    Args:
        train: the settings.
        validated: whether there are validation classes.

    Raises:
        ConfigError: naming the setting.
    """
    if train.early_stop_epochs is not None and not validated:
        message = "stopping early needs validation classes; set data.validation above 0"
        raise ConfigError(message, ("train", "early_stop_epochs"))
    if train.views > 1 and train.sampler != "shuffled":
        raise ConfigError("several views of an image need train.sampler shuffled", ("train", "views"))
    if train.checkpoint_trunk and train.compile:
        message = "a compiled backbone cannot be computed again stage by stage; leave one of the two out"
        raise ConfigError(message, ("train", "checkpoint_trunk"))
    if train.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError("needs the package wandb: pip install 'dmlkd[wandb]'", ("train", "wandb"))


def checkpointed_trunk(train: TrainConfig, model: nn.Module) -> Trunk | None:
    """The backbone whose stages are to be computed again in the backward pass; None: they are to be kept.

    Raises:
        ConfigError: if the model has none with several stages.
    """
    if not train.checkpoint_trunk:
        return None
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, Trunk) or len(trunk.stages) < 2:
        message = "needs a backbone of several stages; train.chunk_size suits any"
        raise ConfigError(message, ("train", "checkpoint_trunk"))
    return trunk
