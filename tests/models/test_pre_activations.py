"""What stands before the last ReLU of each stage, and that keeping it changes nothing of the network."""

import copy

import pytest
import torch
from torch.nn import functional as F

from dmlkd import EmbeddingModel
from dmlkd.errors import ConfigError
from dmlkd.models import ClassHead, ClassifyingModel
from dmlkd.models.pre_activations import last_norm

NEEDS = ("stages", "pre_activations", "pre_activation_norms")
BACKBONES = ("convnet4", "resnet18", "resnet50")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_stage_ends_in_their_relu(backbone):
    model = EmbeddingModel(backbone, dim=4).eval()
    said = model.signals(torch.rand(2, 3, 32, 32), NEEDS)
    assert len(said.pre_activations) == len(said.stages)
    for before, after in zip(said.pre_activations, said.stages, strict=True):
        assert (before < 0).any()
        pooled = F.relu(before)
        if pooled.shape != after.shape:
            stem = backbone != "convnet4"
            pooled = F.max_pool2d(pooled, 3, 2, 1) if stem else F.max_pool2d(pooled, 2, ceil_mode=True)
        assert torch.equal(pooled, after)


@pytest.mark.parametrize("chunks", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_asking_for_them_changes_no_bit_of_values_gradients_and_statistics(backbone, chunks):
    torch.manual_seed(0)
    model = EmbeddingModel(backbone, dim=4).train()
    asked = copy.deepcopy(model)
    asked.trunk.checkpoint_stages(chunks)
    images = torch.rand(4, 3, 32, 32)
    said = [model.signals(images, ["stages"]), asked.signals(images, NEEDS)]
    for signals in said:
        (signals.embeddings.sum() + sum(stage.square().mean() for stage in signals.stages)).backward()
    assert torch.equal(said[0].embeddings, said[1].embeddings)
    for (name, one), other in zip(model.named_parameters(), asked.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(model.named_buffers(), asked.named_buffers(), strict=True):
        assert torch.equal(one, other[1]), name


def test_a_gradient_reaches_the_network_through_them():
    model = EmbeddingModel("resnet18", dim=4)
    said = model.signals(torch.rand(2, 3, 32, 32), NEEDS)
    sum(before.square().mean() for before in said.pre_activations).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.trunk.parameters())
    assert all(not norm.requires_grad for norm in said.pre_activation_norms)


def test_the_norms_are_shift_and_scale_without_sign_for_every_image():
    model = EmbeddingModel("convnet4", dim=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    said = model.signals(torch.rand(3, 3, 8, 8), NEEDS)
    for stage, norms in zip(model.trunk.stages, said.pre_activation_norms, strict=True):
        assert torch.equal(norms, torch.stack([stage[1].bias, stage[1].weight.abs()]).expand(3, 2, 32))


@pytest.mark.parametrize(("backbone", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_the_norm_of_a_resnet_is_the_last_of_its_last_block(backbone, last):
    stages = EmbeddingModel(backbone, dim=4).trunk.stages
    assert [last_norm(stage) for stage in stages] == [stages[0][1], *(getattr(stage[-1], last) for stage in stages[1:])]


def test_synchronised_batch_norm_is_known_too():
    trunk = EmbeddingModel("resnet18", dim=4).trunk
    assert len(torch.nn.SyncBatchNorm.convert_sync_batchnorm(trunk).pre_activation_norms()) == 5


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "vit_b_16", "densenet121"])
def test_other_backbones_do_not_give_them_and_say_so(backbone):
    model = EmbeddingModel(backbone, dim=4)
    assert not model.gives & {"pre_activations", "pre_activation_norms"}
    with pytest.raises(ValueError, match="do not end in batch norm and ReLU: it has no pre_activations"):
        model.signals(torch.rand(1, 3, 32, 32), ["pre_activations"])


def test_a_model_with_class_scores_gives_what_its_embedding_model_gives():
    for backbone in ("convnet4", "mobilenet_v3_small"):
        model = EmbeddingModel(backbone, dim=4)
        assert ClassifyingModel(model, ClassHead(dim=4, classes=2)).gives == model.gives | {"logits", "subclass_logits"}


def test_a_hidden_layer_of_the_head_is_saved_and_read_back(tmp_path):
    model = EmbeddingModel("convnet4", dim=4, in_channels=1, hidden=7).eval()
    assert [tuple(p.shape) for p in model.head.parameters()] == [(7, 32), (7,), (4, 7), (4,)]
    model.save_pretrained(tmp_path / "model")
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(EmbeddingModel.from_pretrained(tmp_path / "model")(images), model(images))
    assert torch.equal(model.embed(images), model(images))


def test_a_head_of_no_width_is_refused():
    with pytest.raises(ConfigError, match="hidden must be at least 1, got 0"):
        EmbeddingModel(dim=4, hidden=0)
