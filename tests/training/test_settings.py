"""Settings that do not suit a model are refused."""

import pytest
from torch import nn

from dmlkd import EmbeddingModel
from dmlkd.config import TrainConfig
from dmlkd.errors import ConfigError
from dmlkd.training.settings import checkpointed_trunk


@pytest.mark.parametrize("make", [lambda: EmbeddingModel(dim=8, exit_stage=0), lambda: nn.Linear(2, 2)])
def test_stages_are_computed_again_only_where_there_are_several(make):
    with pytest.raises(ConfigError, match="needs a backbone of several stages") as caught:
        checkpointed_trunk(TrainConfig(checkpoint_trunk=True), make())
    assert caught.value.path == ("train", "checkpoint_trunk")
    assert checkpointed_trunk(TrainConfig(), make()) is None


def test_a_trunk_of_several_stages_is_taken():
    model = EmbeddingModel(dim=8)
    assert checkpointed_trunk(TrainConfig(checkpoint_trunk=True), model) is model.trunk
