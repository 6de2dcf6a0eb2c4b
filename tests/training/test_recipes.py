"""Every shipped recipe for a metric loss or a method is built and trains for a few steps on its own data."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from dmlkd.config import load_config
from dmlkd.training import EmbeddingModule, run
from dmlkd.training.building import build
from dmlkd.training.fitting import optimizer

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted((CONFIGS / "omniglot-small").glob("*.yaml"))
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))
FAMILIES = {
    "contrastive",
    "margin",
    "multi-similarity",
    "n-pairs",
    "proxy-nca",
    "proxy-anchor",
    "soft-triple",
    "triplet-distance-weighted",
    "triplet-semihard",
    "normalized-softmax",
    "arcface",
    "cosface",
    "circle",
    "supcon",
    "fast-ap",
    "smooth-ap",
    "cross-batch-memory",
}


def test_there_is_a_recipe_for_each_family():
    assert {path.stem for path in RECIPES} == FAMILIES


@pytest.fixture
def taught(omniglot, monkeypatch, tmp_path):
    """Makes the overrides that a recipe needs here; the teacher that one learns from is run first, for an epoch."""
    monkeypatch.setenv("DMLKD_DATA", str(omniglot))

    def overrides(path: Path) -> list[str]:
        needed = ["distill.0.schedule=constant", "data.in_memory=false"]
        teacher = path.with_stem(f"{path.stem}-teacher")
        if teacher.is_file():
            first, _ = load_config(teacher, ["train.epochs=1", "eval.metrics=[recall@1]"])
            needed.append(f"distill.0.teacher.path={run(first, tmp_path / 'teacher').folder}")
        return needed

    return overrides


@pytest.mark.parametrize("path", [*RECIPES, *METHODS], ids=lambda path: path.stem)
def test_a_recipe_trains_for_a_few_steps(path, taught):
    config, _ = load_config(path, taught(path))
    torch.manual_seed(0)
    parts = build(config)
    student, objective = parts.student, parts.objective
    before = [p.detach().clone() for p in parts.model.parameters()]
    loss_weights = [p.detach().clone() for p in objective.loss_parameters()]
    module = EmbeddingModule(
        student, objective, optimizer=optimizer(config.train), epochs=2, metric_loss_lr=config.train.metric_loss_lr
    )
    steps = module.configure_optimizers()
    batches = list(itertools.islice(DataLoader(parts.data.train, batch_sampler=parts.sampler), 2))
    for epoch in range(2):
        objective.start_epoch(student, epoch, 2)
        for batch in batches:
            losses = objective(student.signals(batch.images, objective.student_needs), batch)
            steps.zero_grad()
            losses.total.backward()
            steps.step()
            objective.after_step(student)
            assert torch.isfinite(losses.total)
    assert set(losses.distill) == {term.label for term in objective.terms}
    assert all(loss != 0 for loss in losses.distill.values())
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, parts.model.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(loss_weights, objective.loss_parameters(), strict=True))
    own = [g["lr"] for g in steps.param_groups][1:]
    assert own == ([config.train.metric_loss_lr or config.train.lr] if loss_weights else [])
