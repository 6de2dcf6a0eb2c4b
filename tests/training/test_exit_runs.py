"""Runs with exits: what is trained at which rate, what is measured and saved, and which epoch's."""

import json
from pathlib import Path

import pytest
import torch

from dmlkd import EmbeddingModel
from dmlkd.config import load_config
from dmlkd.errors import ConfigError, UserError
from dmlkd.models import ClassHead, ExitingModel, cost, exits_of
from dmlkd.training import EmbeddingModule, run
from dmlkd.training.building import build
from dmlkd.training.exits import measure_exits
from dmlkd.training.fitting import optimizer
from dmlkd.training.measuring import embed_saved, evaluate_run
from dmlkd.training.proxies import ProxyScores
from dmlkd.training.running import seeded_parts

ROOT = Path(__file__).parents[2]
SMALL = [
    "train.epochs=2",
    "train.batch_size=48",
    "data.image_size=8",
    "data.validation=0",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1, map@r]",
    "miner=null",
]
BYOT = "distill=[{name: byot, weight: 1}]"
SOFTMAX = "metric_loss={name: NormalizedSoftmaxLoss, temperature: 0.1}"


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SMALL, *overrides])[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(configured(BYOT, "exits={stages: [0, 2], width: 3}"), tmp_path_factory.mktemp("exits") / "run")


def test_exits_are_trained_as_the_trunk_is_and_their_class_weights_as_the_metric_losses(monkeypatch):
    parts = build(configured(BYOT, SOFTMAX, "train.metric_loss_lr=0.5"))
    module = EmbeddingModule(
        parts.student, parts.objective, optimizer=optimizer(configured().train), epochs=1, metric_loss_lr=0.5
    )
    made = module.configure_optimizers()
    rest, losses = ({id(p) for p in group["params"]} for group in made.param_groups)
    exiting = exits_of(parts.student)
    assert {id(p) for p in exiting.exits.parameters()} <= rest
    assert losses == {id(p) for p in parts.objective.parameters()}
    assert len(losses) == 1 + 3


@pytest.mark.parametrize("loss", ["ContrastiveLoss", SOFTMAX.removeprefix("metric_loss=")])
def test_posteriors_of_exits_are_those_of_their_losses_or_of_heads_like_the_students(loss):
    parts = build(configured("distill=[{name: byot_posterior, weight: 1}]", f"metric_loss={loss}"))
    method = parts.objective.terms[0].method
    kind = ClassHead if loss == "ContrastiveLoss" else ProxyScores
    assert [type(scores) for scores in method.classes] == [kind] * 3
    assert type(parts.student.classes) is kind
    if kind is ProxyScores:
        assert all(s.loss is own for s, own in zip(method.classes, method.metric_losses, strict=True))
    batch = parts.data.train.batch(list(range(40)))
    losses = parts.objective(parts.student.signals(batch.images, parts.objective.student_needs), batch)
    losses.total.backward()
    assert set(losses.distill) == {"byot_posterior"} | ({"classes"} if kind is ClassHead else set())
    named = [*parts.student.named_parameters(), *parts.objective.named_parameters()]
    assert not [name for name, p in named if p.grad is None]


def test_the_run_folder_has_each_exit_as_a_model_that_scores_what_the_metrics_say(finished):
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    assert list(metrics["exits"]) == ["stage-0", "stage-2", "whole"]
    assert metrics["exits"]["whole"]["test"] == metrics["test"] == dict(evaluate_run(finished.folder))
    data = configured().data
    for name in ("stage-0", "stage-2"):
        folder = finished.folder / "exits" / name
        found = embed_saved(folder, data)._replace(metrics=("recall@1", "map@r")).scores()
        assert dict(found) == pytest.approx(metrics["exits"][name]["test"], abs=1e-12)
        encoder = EmbeddingModel.from_pretrained(folder)
        assert encoder.preparation is not None
        assert encoder.bottleneck[0].weight.shape[0] == 3
        expected = cost(encoder, shape=(1, 8, 8))
        assert metrics["exits"][name]["parameters"] == expected.parameters
        assert metrics["exits"][name]["multiply_adds"] == expected.multiply_adds
        card = (folder / "README.md").read_text()
        assert f"An exit after stage {name[-1]} (from 0) of a larger network" in card
        assert f"{100 * metrics['exits'][name]['test']['recall@1']:.2f}" in card
    assert "An exit after" not in (finished.folder / "model" / "README.md").read_text()
    assert {path.name for path in (finished.folder / "exits").iterdir()} == {"stage-0", "stage-2"}


def test_exits_have_learned(finished, tmp_path):
    config, _ = load_config(finished.folder / "config.yaml")
    before = seeded_parts(config, tmp_path / "same").encoders()["stage-2"].state_dict()
    trained = EmbeddingModel.from_pretrained(finished.folder / "exits" / "stage-2").state_dict()
    moved = {name: not torch.equal(value, before[name]) for name, value in trained.items()}
    assert all(moved.values()), moved


@pytest.mark.parametrize("overrides", [["data.validation=0.4"], ["data.validation=0.4", "train.ema_decay=0.7"]])
def test_exits_are_those_of_the_reported_epoch_and_of_the_averaged_weights(tmp_path, monkeypatch, overrides):
    from dmlkd.training import fitting

    # The first epoch counts as the best, so that last and best differ.
    monkeypatch.setattr(fitting, "best_row", lambda rows, monitor: rows[0])
    monkeypatch.setattr("dmlkd.training.checkpoints.best_row", lambda rows, monitor: rows[0])
    result = run(configured(BYOT, *overrides), tmp_path / "run")
    assert result.metrics["epoch"]["reported"] == "best"
    saved = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    prefix = "average.network.module." if len(overrides) > 1 else "model."
    encoder = EmbeddingModel.from_pretrained(tmp_path / "run" / "exits" / "stage-1")
    whole = EmbeddingModel.from_pretrained(tmp_path / "run" / "model")
    assert torch.equal(encoder.head.weight, saved[f"{prefix}exits.1.head.weight"])
    assert torch.equal(encoder.trunk.stages[1][0].weight, saved[f"{prefix}model.trunk.stages.1.0.weight"])
    assert torch.equal(whole.trunk.stages[1][0].weight, encoder.trunk.stages[1][0].weight)


def test_the_reported_exits_of_a_run_are_measured_with_their_speed(finished):
    found = measure_exits(finished.folder, batch_size=8, seconds=1e-3)
    assert [one.name for one in found] == ["stage-0", "stage-2", "whole"]
    for one in found:
        expected = finished.metrics["exits"][one.name]
        assert (one.test, one.parameters) == (expected["test"], expected["parameters"])
        assert one.images_per_second > 0
        assert EmbeddingModel.from_pretrained(one.folder)


def test_a_teacher_may_be_a_run_that_had_exits(finished):
    parts = build(
        configured(f"distill=[{{name: lsd, weight: 1, teacher: {{name: finished_run, path: {finished.folder}}}}}]")
    )
    assert isinstance(parts.student, EmbeddingModel)
    taught = build(configured("distill=[{name: lsd, weight: 1, teacher: previous_epoch}, {name: byot, weight: 1}]"))
    assert isinstance(taught.student, ExitingModel)


BAD = {
    "exits nobody trains": (["exits={stages: [0]}"], "no term of distill trains exits, as byot does", ("exits",)),
    "the deepest": ([BYOT, "exits={stages: [3]}"], "stage must be an inner one, 0 to 2, got 3", ("exits",)),
    "of an exit": ([BYOT, "model.exit_stage=1"], "a model that is itself an exit has none of its own", ("exits",)),
    "unknown": (["distill=[{name: byot, weight: 1, shares: 1}]"], "unknown key 'shares'; did you mean 'share'", None),
    "bad share": (["distill=[{name: byot, weight: 1, share: 2}]"], "share must be a number from 0 to 1", None),
    "a teacher": (["distill=[{name: byot, weight: 1, teacher: partner}]"], "ExitDistillation takes no teacher", None),
    "exit_stage": (["model.exit_stage=9"], "exit_stage must be an inner one, 0 to 2, got 9", ("model",)),
}


@pytest.mark.parametrize(("overrides", "message", "path"), BAD.values(), ids=BAD)
def test_what_does_not_go_together_is_refused_where_it_stands(overrides, message, path):
    with pytest.raises(ConfigError, match=message) as caught:
        build(configured(*[o for o in ["distill=[]"] if not any("distill" in x for x in overrides)], *overrides))
    assert path is None or caught.value.path == path


def test_a_small_encoder_is_trained_alone_by_its_stage(tmp_path):
    result = run(configured("distill=[]", "model.exit_stage=0", "train.epochs=1"), tmp_path / "run")
    assert "exits" not in result.metrics
    assert len(EmbeddingModel.from_pretrained(tmp_path / "run").trunk.stages) == 1
    with pytest.raises(UserError, match="has no exits: train with the method byot"):
        measure_exits(tmp_path / "run")
