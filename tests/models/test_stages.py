"""torchvision's networks in stages: the same numbers, and feature maps that fit their channels."""

import copy
import inspect

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import VisionTransformer

from dmlkd.models import EmbeddingModel, backbone_names, build_trunk, cost
from dmlkd.models.backbones import _OWN
from dmlkd.models.stages import _BODIES, staged

# One of each family, and what it needs to be run on few pixels.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11_bn": 32,
    "vit_b_32": 224,
}


def without_classifier(name: str) -> nn.Module:
    """As torchvision runs it."""
    network = torchvision.models.get_model(name)
    path = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return network.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_torchvision_to_the_bit_and_maps_have_the_channels_said(name):
    torch.manual_seed(0)
    expected = without_classifier(name)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    trunk = build_trunk(name).eval()
    assert torch.equal(torch.rand(1), drawn)  # cutting draws no numbers
    images = torch.rand(1, 3, FAMILIES[name], FAMILIES[name])
    with torch.no_grad():
        stages, features, _ = trunk(images)
        if features is None:
            features = nn.AdaptiveAvgPool2d(1)(stages[-1]).flatten(1)
        assert torch.equal(features, expected(images))
    assert trunk.channels == features.shape[1]
    assert trunk.stage_channels == tuple(maps.shape[1] for maps in stages)
    assert len(stages) >= 3
    heights = [maps.shape[2] for maps in stages]
    assert all(maps.ndim == 4 for maps in stages)
    assert heights == sorted(heights, reverse=True)


def test_every_backbone_of_torchvision_is_of_a_known_family():
    known = (*_BODIES, torchvision.models.ResNet, VisionTransformer)
    for name in set(backbone_names()) - set(_OWN):
        made = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
        assert made in known, name


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "swin_t", "densenet121", "vit_b_32", "vgg11_bn"])
def test_every_exit_costs_less_than_the_whole_and_less_the_shallower_it_is(name):
    trunk = build_trunk(name)
    stages = range(trunk.first_exit, len(trunk.stages) - 1)
    costs = [cost(EmbeddingModel(name, dim=64, exit_stage=s), shape=(3, 224, 224)).multiply_adds for s in stages]
    costs.append(cost(EmbeddingModel(name, dim=64), shape=(3, 224, 224)).multiply_adds)
    assert costs == sorted(costs)
    assert len(set(costs)) == len(costs)
    assert costs[0] < 0.45 * costs[-1]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_a_cut_trunk_gives_the_maps_of_the_whole_and_holds_no_later_stage(name):
    trunk = build_trunk(name).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        whole = trunk(images).stages
        for stage in range(len(whole)):
            cut = trunk.cut(stage)
            stages, features, _ = cut(images)
            assert features is None
            assert len(stages) == len(cut.stages) == stage + 1
            assert torch.equal(stages[-1], whole[stage])
            assert cut.channels == trunk.stage_channels[stage]


def tiny_vit() -> VisionTransformer:
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=16, patch_size=4, num_layers=6, num_heads=2, hidden_dim=8, mlp_dim=12, dropout=0.1
    )
    return network.eval()


def test_a_transformers_maps_are_its_patches_tokens_in_their_places():
    network = tiny_vit()
    trunk = staged(copy.deepcopy(network)).eval()
    images = torch.rand(2, 3, 16, 16)
    tokens = network._process_input(images)
    tokens = torch.cat([network.class_token.expand(2, -1, -1), tokens], dim=1) + network.encoder.pos_embedding
    stages, features, _ = trunk(images)
    assert [len(stage) for stage in trunk.stages] == [3, 2, 2]  # 6 blocks in shares of 2; tokens are made first
    for stage, maps in enumerate(stages):
        for block in network.encoder.layers[2 * stage : 2 * stage + 2]:
            tokens = block(tokens)
        assert maps.shape == (2, 8, 4, 4)
        for row in range(4):
            for column in range(4):
                assert torch.equal(maps[:, :, row, column], tokens[:, 1 + 4 * row + column])
    assert torch.equal(features, network.encoder.ln(tokens)[:, 0])


def test_a_transformer_refuses_images_of_another_size_naming_both():
    with pytest.raises(AssertionError, match="images must be of 16 by 16 pixels, got 8 by 8"):
        staged(tiny_vit())(torch.rand(1, 3, 8, 8))


def test_dropout_and_stages_computed_again_are_those_of_the_whole_transformer():
    network = tiny_vit().train()
    network.heads = nn.Identity()
    trunk = staged(copy.deepcopy(network)).train()
    images = torch.rand(2, 3, 16, 16)
    results = []
    for run in (lambda: network(images), lambda: trunk(images).features):
        torch.manual_seed(1)
        results.append(run())
    assert torch.equal(*results)
    trunk.checkpoint_stages()
    torch.manual_seed(1)
    trunk(images).features.square().sum().backward()
    results[0].square().sum().backward()
    assert torch.equal(trunk.stages[0][0].conv_proj.weight.grad, network.conv_proj.weight.grad)


def test_names_in_saved_resnets_and_convnets_are_those_of_before():
    resnet, own = EmbeddingModel("resnet18", dim=4), EmbeddingModel("convnet4", dim=4)
    assert {"trunk.stages.0.0.weight", "trunk.stages.4.1.bn2.running_var", "head.bias"} <= set(resnet.state_dict())
    assert {name.split(".")[1] for name in resnet.state_dict() if name.startswith("trunk")} == {"stages"}
    assert [name for name in own.state_dict() if ".3." in name][:2] == [
        "trunk.stages.3.0.weight",
        "trunk.stages.3.1.weight",
    ]


def test_a_staged_transformer_is_exported_for_any_number_of_images():
    trunk = staged(tiny_vit()).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(trunk, (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    images = torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(program.module()(images).features, trunk(images).features)
