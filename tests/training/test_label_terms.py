"""Terms of learned labels, class geometry, dropout and adversary: what they go with, what they train, bad ones."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from dmlkd.config import load_config
from dmlkd.errors import ConfigError
from dmlkd.models import ClassHead
from dmlkd.training import EmbeddingModule
from dmlkd.training.building import build
from dmlkd.training.fitting import optimizer

ROOT = Path(__file__).parents[2]
SMALL = [
    "train.batch_size=48",
    "data.validation=0",
    "data.image_size=8",
    "model.backbone_args.width=4",
    "miner=null",
]
TERMS = {
    "adaptive_labels": "{name: adaptive_labels, weight: 1}",
    "skd": "{name: skd, weight: 1}",
    "sd_dropout": "{name: sd_dropout, weight: 1}",
    "adversary": "{name: adversary, weight: 1, teacher: moving_average}",
    "ps_kd": "{name: ps_kd, weight: 1, teacher: moving_average}",
}
OTHERS = "{name: lsd, weight: 10, teacher: moving_average, schedule: constant}, {name: cs_kd, weight: 1}"


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SMALL, *overrides])[0]


@pytest.mark.parametrize("loss", ["ContrastiveLoss", "{name: NormalizedSoftmaxLoss, temperature: 0.1}"])
@pytest.mark.parametrize("name", TERMS)
def test_it_trains_beside_pairs_or_classes_with_lists_and_another_posterior(name, loss):
    config = configured(f"metric_loss={loss}", f"distill=[{TERMS[name]}, {OTHERS}]")
    torch.manual_seed(0)
    parts = build(config)
    student, objective = parts.student, parts.objective
    assert isinstance(student.classes, ClassHead) == (loss == "ContrastiveLoss")
    steps = EmbeddingModule(student, objective, optimizer=optimizer(config.train), epochs=2).configure_optimizers()
    before = {k: p.detach().clone() for k, p in [*student.named_parameters(), *objective.named_parameters()]}
    batches = iter(DataLoader(parts.data.train, batch_sampler=parts.sampler))
    objective.start_epoch(student, 0, 2)
    for _ in range(3):
        batch = next(batches)
        losses = objective(student.signals(batch.images, objective.student_needs), batch)
        steps.zero_grad()
        losses.total.backward()
        steps.step()
        objective.after_step(student)
    expected = {name, "lsd", "cs_kd"}
    if loss == "ContrastiveLoss" and name not in ("skd", "ps_kd"):
        expected |= {"classes"}
    assert set(losses.distill) == expected
    assert all(loss.isfinite() and loss > 0 for loss in losses.distill.values())
    for key, p in [*student.named_parameters(), *objective.named_parameters()]:
        assert not p.requires_grad or not torch.equal(p, before[key]), key


def test_what_a_method_learns_is_trained_at_the_rate_of_the_metric_loss_and_left_out_of_the_model():
    learned = "distill=[{name: adaptive_labels, weight: 1}, {name: adversary, weight: 1, teacher: moving_average}]"
    parts = build(configured(learned, "metric_loss={name: NormalizedSoftmaxLoss, temperature: 0.1}"))
    classes = int(parts.data.train.targets.max()) + 1
    shapes = sorted(tuple(p.shape) for p in parts.objective.loss_parameters())
    own = [(classes, classes), (128, classes), (128,), (1, 128), (1,)]
    assert shapes == sorted([*own, (64, classes)])
    assert not {id(p) for p in parts.model.parameters()} & {id(p) for p in parts.objective.loss_parameters()}


def test_masks_go_on_where_a_checkpoint_was():
    config = configured("distill=[{name: sd_dropout, weight: 1}]")
    parts, again, fresh = build(config), build(config), build(config)
    parts.objective.after_step(parts.student)
    again.objective.load_state_dict(parts.objective.state_dict())
    features = torch.randn(4, parts.model.trunk.channels)
    for other in (again, fresh):
        other.student.load_state_dict(parts.student.state_dict())
    losses = [p.objective.methods["sd_dropout"](features=features) for p in (parts, again, fresh)]
    assert losses[0] == losses[1] != losses[2]


def test_a_batch_whose_images_are_all_of_one_class_has_finite_gradients():
    terms = ", ".join(TERMS.values())
    parts = build(configured(f"distill=[{terms}]", "metric_loss={name: NormalizedSoftmaxLoss, temperature: 0.1}"))
    batch = next(iter(DataLoader(parts.data.train, batch_sampler=parts.sampler)))
    batch = batch._replace(labels=torch.zeros_like(batch.labels), images=torch.zeros_like(batch.images))
    parts.objective.after_step(parts.student)
    parts.objective.start_epoch(parts.student, 1, 2)
    losses = parts.objective(parts.student.signals(batch.images, parts.objective.student_needs), batch)
    losses.total.backward()
    assert set(losses.distill) == set(TERMS)
    assert all(p.grad.isfinite().all() for p in parts.student.parameters() if p.grad is not None)


WRONG = {
    "an adversary without a run": (
        ["distill=[{name: adversary, weight: 1}]"],
        "needs either path, a folder, or fit",
    ),
    "a rate of 1": (["distill=[{name: sd_dropout, weight: 1, rate: 1}]"], "rate must be .*below 1, got 1"),
    "what the run settles": (["distill=[{name: adaptive_labels, weight: 1, classes: 3}]"], "unknown key 'classes'"),
    "no neighbours": (
        ["distill=[{name: skd, weight: 1, teacher: {name: class_geometry, neighbours: 0}}]"],
        "neighbours must be .*got 0",
    ),
    "class geometry without classes": (
        ["distill=[{name: lsd, weight: 1, teacher: class_geometry}]"],
        "ClassGeometryTeacher reads class scores, which no method of distill does",
    ),
    "lists from class geometry": (
        ["distill=[{name: lsd, weight: 1, teacher: class_geometry}, {name: cs_kd, weight: 1}]"],
        "needs its teacher's embeddings, got ClassGeometryTeacher",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), WRONG.values(), ids=WRONG)
def test_a_bad_term_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build(configured(*overrides))
