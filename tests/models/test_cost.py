"""Parameters and multiply-adds against sums by hand; speeds only in kind."""

import pytest
import torch

from dmlkd import EmbeddingModel
from dmlkd.models import cost, images_per_second


def test_parameters_and_multiply_adds_are_those_summed_by_hand():
    model = EmbeddingModel("convnet4", dim=5, in_channels=1, backbone_args={"width": 3})
    found = cost(model, shape=(1, 20, 20))
    convolutions = 20 * 20 * 9 * 1 * 3 + (10 * 10 + 5 * 5 + 3 * 3) * 9 * 3 * 3
    assert found.multiply_adds == convolutions + 3 * 5
    assert found.parameters == 9 * 3 + 3 * 9 * 9 + 4 * 6 + 3 * 5 + 5


def test_an_exit_adds_its_bottleneck_and_leaves_out_what_is_behind_it():
    model = EmbeddingModel("convnet4", dim=5, in_channels=1, backbone_args={"width": 8}, exit_stage=0)
    bottleneck = 10 * 10 * 8 * 2 + 5 * 5 * 9 * 2 * 2 + 5 * 5 * 2 * 8
    assert cost(model, shape=(1, 20, 20)).multiply_adds == 20 * 20 * 9 * 8 + bottleneck + 8 * 5


def test_attention_is_counted():
    """4.41 thousand million is what torchvision states for it, less its classifier."""
    found = cost(EmbeddingModel("vit_b_32", dim=1), shape=(3, 224, 224))
    assert found.multiply_adds == pytest.approx(4.41e9 - 768 * 999, rel=2e-3)


def test_counting_changes_nothing_of_the_model():
    model = EmbeddingModel("convnet4", dim=5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    cost(model, shape=(3, 8, 8))
    assert model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_speeds_are_measured_of_each_in_eval_mode_and_the_modes_put_back():
    models = {name: EmbeddingModel("convnet4", dim=2, in_channels=1) for name in ("a", "b")}
    models["b"].eval()
    modes = []
    models["a"].register_forward_hook(lambda module, *_: modes.append(module.training))
    speeds = images_per_second(models, shape=(1, 8, 8), batch_size=4, seconds=1e-4)
    assert set(speeds) == {"a", "b"}
    assert all(speed > 0 for speed in speeds.values())
    assert (models["a"].training, models["b"].training) == (True, False)
    assert modes
    assert not any(modes)
