"""The teacher of cross-fitting: each image is taught by the network that did not see it."""

import pytest
import torch
from torch.nn import functional as F

from dmlkd.distill import (
    Constant,
    DistillationMethod,
    FrozenTeacher,
    Lesson,
    ListwiseSelfDistillation,
    OutOfFoldTeacher,
    Teacher,
)
from dmlkd.models import EmbeddingModel
from dmlkd.signals import Batch, Signals
from dmlkd.training import Objective, Term


def network() -> EmbeddingModel:
    return EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4})


class RowMean(DistillationMethod):
    """A loss that is a mean over rows, as those of class posteriors are."""

    def from_signals(self, *, batch, student, teacher):
        return F.mse_loss(student.embeddings, teacher.embeddings)


class Whole(Teacher):
    """Says of each image what the network says that did not see it, all in one."""

    def __init__(self, networks, teaches):
        super().__init__()
        self.networks, self.teaches = torch.nn.ModuleList(networks), teaches

    ready = True

    @torch.no_grad()
    def teach(self, *, batch, student, needs):
        said = torch.stack([n.eval()(batch.images) for n in self.networks])
        return Lesson((Signals(said[self.teaches[batch.rows], torch.arange(len(batch.rows))]),))


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.rand(7, 1, 8, 8), torch.arange(7) // 2, torch.tensor([4, 9, 0, 2, 7, 5, 1]))


def losses(method, teacher, student, batch):
    objective = Objective(
        lambda z, y, i: z.sum() * 0, [Term(method, teacher, weight=1.0, schedule=Constant(), name="a")]
    )
    objective.start_epoch(student, 0, 1)
    return objective(student.signals(batch.images), batch).distill["a"]


def test_a_mean_over_rows_is_that_of_the_whole_batch(batch):
    networks, student, teaches = [network(), network()], network(), torch.arange(10) % 2
    parts = losses(RowMean(), OutOfFoldTeacher(networks, teaches), student, batch)
    torch.testing.assert_close(parts, losses(RowMean(), Whole(networks, teaches), student, batch))


def test_a_list_is_of_the_images_of_one_network(batch):
    networks, student, teaches = [network(), network()], network(), torch.arange(10) % 2
    found = losses(ListwiseSelfDistillation(), OutOfFoldTeacher(networks, teaches), student, batch)
    z = student(batch.images)
    expected = torch.tensor(0.0)
    for index, own in enumerate(networks):
        rows = [i for i, row in enumerate(batch.rows.tolist()) if row % 2 == index]
        lsd = ListwiseSelfDistillation()
        expected = expected + len(rows) / 7 * lsd(student=z[rows], teacher=own.eval()(batch.images[rows]))
    torch.testing.assert_close(found, expected)


def test_one_network_for_all_is_a_frozen_teacher(batch):
    own, student = network(), network()
    found = losses(ListwiseSelfDistillation(), OutOfFoldTeacher([own], torch.zeros(10)), student, batch)
    assert torch.equal(found, losses(ListwiseSelfDistillation(), FrozenTeacher(own), student, batch))


def test_a_part_of_one_image_is_left_out(batch):
    networks = [network(), network()]
    teaches = torch.zeros(10)
    teaches[9] = 1
    lesson = OutOfFoldTeacher(networks, teaches).teach(batch=batch, student=Signals(torch.rand(7, 8)), needs=())
    assert [p.tolist() for p in lesson.positions] == [[0, 2, 3, 4, 5, 6]]
    assert lesson.shares == (6 / 7,)


def test_a_batch_that_nobody_can_teach_has_no_loss():
    lone = Batch(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), torch.tensor([0, 1]))
    teacher = OutOfFoldTeacher([network(), network()], torch.tensor([0, 1]))
    assert losses(ListwiseSelfDistillation(), teacher, network(), lone) == 0


def test_its_networks_stay_in_eval_mode_without_gradient_and_in_the_state():
    teacher = OutOfFoldTeacher([network(), network()], torch.tensor([0, 1])).train()
    assert not any(member.network.training for member in teacher.members)
    assert not any(p.requires_grad for p in teacher.parameters())
    state = teacher.state_dict()
    other = OutOfFoldTeacher([network(), network()], torch.tensor([1, 0]))
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), other.parameters(), strict=True))
    assert other.teaches.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("networks", "teaches", "message"),
    [
        (0, [0], "networks must be at least one, got none"),
        (2, [0, 2], "teaches must be from 0 to 1, a network for each row, got 0 to 2"),
        (2, [-1, 1], "teaches must be from 0 to 1, a network for each row, got -1 to 1"),
    ],
)
def test_rows_without_a_network_are_refused(networks, teaches, message):
    with pytest.raises(ValueError, match=message):
        OutOfFoldTeacher([network() for _ in range(networks)], torch.tensor(teaches))
