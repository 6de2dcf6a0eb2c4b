"""Every shipped recipe for a metric loss or a method is built and trains for a few steps on its own data."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from dmlkd.config import Part, PlanConfig, PlanFit, load_training
from dmlkd.training import EmbeddingModule, run
from dmlkd.training.building import build
from dmlkd.training.fitting import optimizer

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted((CONFIGS / "omniglot-small").glob("*.yaml"))
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))
PLANS = sorted((CONFIGS / "plans").glob("omniglot-*.yaml"))  # those of the digits have tests of their own
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
def built(omniglot, monkeypatch, tmp_path):
    """Builds what a recipe trains; of a plan its last fit, after the earlier ones, an epoch each."""
    monkeypatch.setenv("DMLKD_DATA", str(omniglot))

    def build_last(path: Path):
        training, _ = load_training(path, ["data.in_memory=false"])
        *earlier, last = training.fits if isinstance(training, PlanConfig) else [PlanFit("only", training, lambda e: e)]
        for fit in earlier:
            short = fit.config.model_copy(update={"train": fit.config.train.model_copy(update={"epochs": 1})})
            run(short, tmp_path / fit.name)
        terms = tuple(term.model_copy(update={"schedule": Part(name="constant")}) for term in last.config.distill)
        config = last.config.model_copy(update={"distill": terms})
        torch.manual_seed(0)
        return config, build(config, tmp_path)

    return build_last


@pytest.mark.parametrize("path", [*RECIPES, *METHODS, *PLANS], ids=lambda path: path.stem)
def test_a_recipe_trains_for_a_few_steps(path, built):
    config, parts = built(path)
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
