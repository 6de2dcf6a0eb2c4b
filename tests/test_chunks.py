"""A batch in chunks: the values and gradients of the whole batch, with the memory of a chunk."""

import copy

import pytest
import torch
from torch import nn

from dmlkd import Batch, EmbeddingModel, Objective, Signals
from dmlkd.chunks import signals_in_chunks
from dmlkd.distill import FrozenTeacher, ListwiseSelfDistillation, PreviousEpochTeacher, WiderHeadsTeacher
from dmlkd.training import Term

B = 11


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(B, 1, 8, 8, dtype=torch.float64)


def model(**kwargs) -> EmbeddingModel:
    made = EmbeddingModel("convnet4", dim=5, in_channels=1, backbone_args={"width": 6}, **kwargs)
    return made.double()


def gradients(network: nn.Module, objective: Objective, batch: Batch, size: int | None):
    network.zero_grad()
    signals = signals_in_chunks(network, batch.images, objective.student_needs, size=size)
    losses = objective(signals, batch)
    losses.total.backward()
    return losses, {name: p.grad.clone() for name, p in network.named_parameters()}


def spread(z: torch.Tensor, labels: torch.Tensor, indices: object) -> torch.Tensor:
    """A loss that no sum over chunks can give: every image is compared with every other."""
    return (z @ z.T).logsumexp(dim=1).mean()


def terms(student: EmbeddingModel) -> list[Term]:
    heads = WiderHeadsTeacher(features=6, metric_loss=lambda _: Spread(), dims=(7,), features_after=0).double()
    return [
        Term(ListwiseSelfDistillation(), FrozenTeacher(model().double()), weight=3.0, name="lsd"),
        Term(ListwiseSelfDistillation(), heads, weight=2.0, name="s2sd"),
    ]


class Spread(nn.Module):
    def forward(self, z, labels, indices):
        return spread(z, labels, indices)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, B, 100])
def test_loss_and_gradients_are_those_of_the_whole_batch(images, size):
    student = model(frozen_batch_norm=True).train()
    objective = Objective(spread, terms(student))
    batch = Batch(images, torch.arange(B) % 3, torch.arange(B))
    whole, expected = gradients(student, objective, batch, None)
    chunked, found = gradients(student, objective, batch, size)
    torch.testing.assert_close(chunked.total, whole.total, rtol=1e-12, atol=0)
    assert set(whole.distill) == {"lsd", "s2sd"}
    assert all(gradient.abs().sum() > 0 for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13, msg=name)


@pytest.mark.parametrize("needs", [set(), {"features"}, {"stages"}, {"features", "stages"}])
def test_what_is_asked_for_is_kept_and_nothing_else(images, needs):
    student = model(frozen_batch_norm=True)
    whole = student.signals(images, needs)
    for graph in (True, False):
        with torch.set_grad_enabled(graph):
            chunked = signals_in_chunks(student, images, needs, size=4)
        torch.testing.assert_close(chunked.embeddings, whole.embeddings)
        assert (chunked.features is not None) == ("features" in needs)
        assert (chunked.stages is not None) == ("stages" in needs)
        for mine, theirs in zip(chunked.stages or (), whole.stages or (), strict=True):
            torch.testing.assert_close(mine, theirs)


class Scored(nn.Module):
    """A network with dropout, class scores and a log of the batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 5).double()
        self.norm = nn.BatchNorm1d(5).double()
        self.seen: list[int] = []

    def signals(self, images, needs=()):
        self.seen.append(len(images))
        scores = self.linear(nn.functional.dropout(images.flatten(1), 0.5))
        scores = self.norm(scores)
        return Signals(nn.functional.normalize(scores, dim=1), logits=scores)


def test_chunks_are_as_large_as_allowed_and_even(images):
    network = Scored()
    for size, sizes in ((4, [4, 4, 3]), (10, [6, 5]), (11, [11]), (6, [6, 5])):
        network.seen.clear()
        with torch.no_grad():
            assert signals_in_chunks(network, images, {"logits"}, size=size).logits.shape == (B, 5)
        assert network.seen == sizes


def test_random_numbers_are_the_same_when_a_chunk_is_computed_again(images):
    network = Scored()
    torch.manual_seed(1)
    plain = torch.cat([network.signals(part).embeddings for part in images.tensor_split(3)])
    spread(plain, None, None).backward()
    expected = network.linear.weight.grad.clone()
    network.zero_grad()
    torch.manual_seed(1)
    z = signals_in_chunks(network, images, size=4).embeddings
    after = torch.get_rng_state()
    assert torch.equal(z, plain)
    spread(z, None, None).backward()
    torch.testing.assert_close(network.linear.weight.grad, expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_live_statistics_move_once_a_chunk_and_not_again_in_the_backward_pass(images, momentum):
    network = Scored()
    network.norm.momentum = momentum
    by_hand = copy.deepcopy(network)
    torch.manual_seed(1)
    for part in images.tensor_split(3):
        by_hand.signals(part)
    torch.manual_seed(1)
    spread(signals_in_chunks(network, images, size=4).embeddings, None, None).backward()
    assert network.norm.num_batches_tracked == 3
    assert network.norm.momentum == momentum
    for name, buffer in by_hand.norm.named_buffers():
        assert torch.equal(buffer, network.norm.get_buffer(name)), name


def test_only_the_signals_are_kept_for_the_backward_pass(images):
    student = model(frozen_batch_norm=True)

    def kept_bytes(size):
        kept = {}

        def pack(tensor):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            student.zero_grad()
            signals = signals_in_chunks(student, images, size=size)
            loss = spread(signals.embeddings, None, None)
        loss.backward()
        return sum(kept.values())

    assert kept_bytes(2) < kept_bytes(None) / 5


def test_teachers_see_chunks_too(images):
    batch = Batch(images, torch.arange(B), torch.arange(B))
    network = Scored()
    teacher = FrozenTeacher(network, chunk_size=4)
    lesson = teacher.teach(batch=batch, student=Signals(torch.zeros(B, 5)), needs={"logits"})
    assert network.seen == [4, 4, 3]
    assert lesson.signals[0].logits.shape == (B, 5)
    assert not lesson.signals[0].logits.requires_grad
    student = model()
    previous = PreviousEpochTeacher(student, chunk_size=4)
    (said,) = previous.teach(batch=batch, student=Signals(images), needs={"embeddings"}).signals
    torch.testing.assert_close(said.embeddings, student.eval()(images))


@pytest.mark.parametrize("size", [0, -3])
def test_a_bad_size_is_refused_by_name(images, size):
    with pytest.raises(ValueError, match=f"size must be at least 1, got {size}"):
        signals_in_chunks(model(), images, size=size)
