"""Exits: shapes, gradients, and which stages have one."""

import pytest
import torch

from dmlkd.exits import Exit, inner_channels
from dmlkd.models import EmbeddingModel


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7)])
def test_feature_maps_of_any_size_give_features_and_outputs(size):
    leaving = Exit(channels=6, features=10, outputs=3)
    said = leaving(torch.rand(4, 6, *size))
    assert (said.features.shape, said.outputs.shape) == ((4, 10), (4, 3))
    assert torch.equal(said.outputs, leaving.head(said.features))


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 8)])
def test_maps_are_averaged_down_before_the_bottleneck(size):
    leaving, maps = Exit(channels=6, features=10, outputs=3, shrink=4).eval(), torch.rand(2, 6, *size)
    plain = Exit(channels=6, features=10, outputs=3).eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), leaving.state_dict().values(), strict=True)))
    smaller = torch.stack(
        [
            torch.stack([maps[:, :, top : top + 4, left : left + 4].mean((2, 3)) for left in range(0, size[1], 4)], -1)
            for top in range(0, size[0], 4)
        ],
        dim=-2,
    )
    torch.testing.assert_close(leaving(maps).outputs, plain(smaller).outputs)


def test_a_bottleneck_is_as_wide_as_a_quarter_of_its_features_and_no_wider_than_its_maps():
    widths = [Exit(channels=c, features=64, outputs=1).bottleneck[0].weight.shape[0] for c in (4, 16, 50)]
    assert widths == [4, 16, 16]


def test_every_weight_of_an_exit_has_a_gradient():
    leaving = Exit(channels=6, features=10, outputs=3, width=5)
    leaving(torch.rand(4, 6, 5, 5)).outputs.square().sum().backward()
    assert leaving.bottleneck[0].weight.shape[0] == 5
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in leaving.head.parameters())
    assert all(p.grad is not None for p in leaving.parameters())


@pytest.mark.parametrize("backbone", ["convnet4", "resnet18", "resnet50", "mobilenet_v3_small"])
def test_a_trunk_knows_the_channels_of_its_stages(backbone):
    model = EmbeddingModel(backbone, dim=4).eval()
    with torch.no_grad():
        signals = model.signals(torch.rand(1, 3, 32, 32), ["stages"])
    assert model.trunk.stage_channels == tuple(maps.shape[1] for maps in signals.stages)
    assert model.features == signals.features.shape[1]


BAD = {
    "the deepest": (lambda: inner_channels((8, 16), 1), "stage must be an inner one, 0 to 0, got 1"),
    "below 0": (lambda: inner_channels((8, 16), -1), "stage must be an inner one, 0 to 0, got -1"),
    "no number": (lambda: inner_channels((8, 16), True), "got True"),
    "one stage": (lambda: inner_channels((8,), 0), "one stage has no inner stage"),
    "no channels": (lambda: Exit(channels=0, features=1, outputs=1), "channels must be at least 1, got 0"),
    "no features": (lambda: Exit(channels=1, features=0, outputs=1), "features must be at least 1, got 0"),
    "no outputs": (lambda: Exit(channels=1, features=1, outputs=0), "outputs must be at least 1, got 0"),
    "no width": (lambda: Exit(channels=1, features=1, outputs=1, width=0), "width must be at least 1, got 0"),
    "no shrink": (lambda: Exit(channels=1, features=1, outputs=1, shrink=0), "shrink must be at least 1, got 0"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
