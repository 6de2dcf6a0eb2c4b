"""A backbone whose stages are computed again in the backward pass: the same network, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from dmlkd import EmbeddingModel
from dmlkd.chunks import signals_in_chunks
from dmlkd.distill import PreviousEpochTeacher


def gradients(model: EmbeddingModel, images: torch.Tensor, *, size: int | None = None, stages: bool = False):
    """Loss, gradients and buffers after a step forward and back."""
    torch.manual_seed(3)
    signals = signals_in_chunks(model, images, ("stages",) if stages else (), size=size)
    loss = (signals.embeddings @ signals.embeddings.T).logsumexp(dim=1).mean()
    if stages:
        loss = loss + sum(stage.square().mean() for stage in signals.stages)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()], list(model.buffers())


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def with_dropout(model: EmbeddingModel) -> EmbeddingModel:
    model.trunk.stages[1].append(nn.Dropout2d(0.5))
    return model


@pytest.mark.parametrize("size", [None, 5])
@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: EmbeddingModel("resnet18", dim=8), lambda: with_dropout(EmbeddingModel(dim=8))]
)
def test_values_gradients_and_statistics_are_those_without(make, size, stages):
    torch.manual_seed(0)
    plain = make().train()
    again = copy.deepcopy(plain)
    again.trunk.checkpoint_stages()
    images = torch.rand(12, 3, 32, 32)
    loss, grads, buffers = gradients(plain, images, size=size, stages=stages)
    loss_again, grads_again, buffers_again = gradients(again, images, size=size, stages=stages)
    assert torch.equal(loss, loss_again)
    assert equal(grads, grads_again)
    assert equal(buffers, buffers_again)


def test_activations_are_computed_again_only_where_gradients_are():
    model = EmbeddingModel(dim=8)
    calls = []
    model.trunk.stages[0].register_forward_pre_hook(lambda *_: calls.append(1))
    images = torch.rand(4, 3, 16, 16)
    model.trunk.checkpoint_stages()
    model(images).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(images)
    assert len(calls) == 3
    model.trunk.checkpoint_stages(False)
    model(images).sum().backward()
    assert len(calls) == 4


def test_less_is_kept_for_the_backward_pass():
    def kept(model: EmbeddingModel) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.rand(8, 3, 32, 32))
        return sum(sizes.values())

    model = EmbeddingModel(dim=8)
    before = kept(model)
    model.trunk.checkpoint_stages()
    assert kept(model) < 0.5 * before


def test_a_teacher_made_of_it_teaches_and_the_saved_model_is_plain(tmp_path):
    model = EmbeddingModel(dim=8)
    model.trunk.checkpoint_stages()
    names = set(model.state_dict())
    teacher = PreviousEpochTeacher(model)
    assert not teacher(torch.rand(4, 3, 16, 16)).requires_grad
    model.save_pretrained(tmp_path)
    assert set(EmbeddingModel.from_pretrained(tmp_path).state_dict()) == names
