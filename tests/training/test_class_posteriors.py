"""Runs whose terms read class scores: of the metric loss's own weights, of an auxiliary head, of finished runs."""

import json
from pathlib import Path

import pytest
import torch

from dmlkd.classification import PosteriorScores
from dmlkd.config import load_config
from dmlkd.errors import ConfigError
from dmlkd.models import ClassHead, ClassifyingModel, EmbeddingModel, load_classes
from dmlkd.training import run
from dmlkd.training.building import build
from dmlkd.training.building_losses import build_losses
from dmlkd.training.loading import CLASSES
from dmlkd.training.measuring import measure_run_seen

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.epochs=2",
    "train.batch_size=48",
    "data.validation=0.4",
    "data.image_size=8",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1, map@r]",
    "miner=null",
]


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]


def test_an_auxiliary_head_is_trained_beside_a_pair_loss_and_left_out_of_the_model(tmp_path):
    result = run(configured("distill=[{name: cs_kd, weight: 1}]", "metric_loss=ContrastiveLoss"), tmp_path / "run")
    history = result.fit.history
    assert history[-1]["train/classes"] < history[0]["train/classes"]
    assert history[-1]["weight/cs_kd"] == 1
    classes = load_classes(tmp_path / "run" / "classes.safetensors")
    assert classes.centres().shape == (
        json.loads((tmp_path / "run/metrics.json").read_text())["data"]["train"]["classes"],
        1,
        64,
    )
    assert not any("classes" in name for name, _ in EmbeddingModel.from_pretrained(tmp_path / "run").named_parameters())


def test_a_finished_run_teaches_its_class_scores_to_another_network(tmp_path):
    softmax = "metric_loss={name: NormalizedSoftmaxLoss, temperature: 0.1}"
    run(configured("distill=[{name: cs_kd, weight: 1}]", softmax), tmp_path / "first")
    teacher = f"{{name: finished_run, path: {tmp_path / 'first'}}}"
    again = configured(f"distill=[{{name: posterior, weight: 1, teacher: {teacher}}}]", softmax, "model.dim=16")
    parts = build(again)
    network = parts.objective.terms[0].teacher.network
    expected = load_classes(tmp_path / "first" / "classes.safetensors").centres()
    assert torch.equal(network.classes.centres(), expected)
    assert run(again, tmp_path / "second").fit.history[-1]["train/posterior"] > 0


def test_a_run_without_class_scores_cannot_teach_them(tmp_path):
    run(configured("distill=[]"), tmp_path / "first")
    teacher = f"{{name: finished_run, path: {tmp_path / 'first'}}}"
    with pytest.raises(ConfigError, match="PosteriorDistillation needs its teacher's logits"):
        build(configured(f"distill=[{{name: posterior, weight: 1, teacher: {teacher}}}]"))


def test_the_losses_own_classes_are_taken_unless_a_head_is_asked_for():
    softmax = ["metric_loss=NormalizedSoftmaxLoss", "distill=[{name: cs_kd, weight: 1}]"]
    own, head = build(configured(*softmax)), build(configured(*softmax, "classes={scale: 9, subclasses: 3}"))
    assert own.student.classes.loss is own.objective.metric_loss
    assert [term.label for term in own.objective.terms] == ["cs_kd"]
    assert isinstance(head.student.classes, ClassHead)
    assert head.student.classes.centres().shape[1] == 3
    assert [term.label for term in head.objective.terms] == ["cs_kd", "classes"]


def test_the_metric_loss_can_be_left_out():
    parts = build(configured("metric_weight=0", "distill=[{name: cross_entropy, weight: 2}]"))
    batch = next(iter(torch.utils.data.DataLoader(parts.data.train, batch_sampler=parts.sampler)))
    losses = parts.objective(parts.student.signals(batch.images, parts.objective.student_needs), batch)
    assert losses.metric == 0
    assert losses.total == 2 * losses.distill["cross_entropy"]


SOFTMAX = "metric_loss={name: NormalizedSoftmaxLoss, temperature: 0.1}"
HELD_OUT = "data.held_out_images=0.25"
LONGER = ["train.epochs=6", "train.lr=0.01", "train.metric_loss_lr=0.1"]


@pytest.mark.parametrize("distill", ["[]", "[{name: cs_kd, weight: 1}]", "[{name: lsd, weight: 1}]"])
def test_class_scores_are_measured_on_held_out_images_of_the_training_classes(tmp_path, distill):
    config = configured(SOFTMAX, HELD_OUT, f"distill={distill}", *LONGER, "data.validation=0")
    result = run(config, tmp_path / "run")
    seen = json.loads((tmp_path / "run" / "metrics.json").read_text())["seen"]
    assert list(seen) == list(PosteriorScores._fields)
    assert seen["top1"] > 0.5  # of 5 classes
    assert result.metrics["data"]["seen"]["classes"] == 5
    data = build(config).data
    student = ClassifyingModel(
        EmbeddingModel.from_pretrained(tmp_path / "run"), load_classes(tmp_path / "run" / CLASSES)
    )
    images = torch.stack([data.seen[row].images for row in range(len(data.seen))])
    logits = student.eval().signals(images, ["logits"]).logits
    assert (logits.argmax(dim=1).numpy() == data.seen.targets).mean() == pytest.approx(seen["top1"])
    assert measure_run_seen(tmp_path / "run")._asdict() == pytest.approx(seen, abs=1e-6)


def test_the_class_scores_are_those_of_the_epoch_that_is_reported(tmp_path):
    result = run(configured(SOFTMAX, HELD_OUT, "distill=[]", "train.epochs=4"), tmp_path / "run")
    assert result.metrics["epoch"]["reported"] == "best"
    assert measure_run_seen(tmp_path / "run")._asdict() == pytest.approx(result.metrics["seen"], abs=1e-6)


def test_measuring_class_scores_changes_nothing_of_what_is_trained():
    batch = next(iter(torch.utils.data.DataLoader((data := build(configured(SOFTMAX)).data).train, batch_size=32)))
    losses = []
    for held_out in ("0", "0.25"):
        config = configured(SOFTMAX, "distill=[]", f"data.held_out_images={held_out}")
        torch.manual_seed(0)
        model = EmbeddingModel("convnet4", dim=8, in_channels=1)
        student, objective = build_losses(config, model, classes=3, rows=len(data.train))
        losses.append(objective(student.signals(batch.images, objective.student_needs), batch).total)
    assert isinstance(student, ClassifyingModel)
    assert torch.equal(*losses)


def test_a_run_without_held_out_images_measures_no_class_scores(tmp_path):
    assert "seen" not in run(configured(SOFTMAX, "distill=[{name: cs_kd, weight: 1}]"), tmp_path / "run").metrics
    assert measure_run_seen(tmp_path / "run") is None


def test_a_pair_loss_is_measured_by_the_head_that_is_asked_for():
    with pytest.raises(ConfigError, match="ContrastiveLoss has none; add classes"):
        build(configured("metric_loss=ContrastiveLoss", "distill=[]", HELD_OUT))
    parts = build(configured("metric_loss=ContrastiveLoss", "distill=[]", HELD_OUT, "classes={}"))
    assert isinstance(parts.student.classes, ClassHead)
    assert [term.label for term in parts.objective.terms] == ["classes"]


COMBINED = {
    "ambiguity": ("{name: ambiguity, weight: 1, schedule: constant}", []),
    "subclass_spread": ("{name: subclass_spread, weight: 1}", ["classes={subclasses: 3}"]),
    "subclass": (
        "{name: subclass, weight: 1, teacher: {name: finished_run, path: EARLIER}}",
        ["classes={subclasses: 2}"],
    ),
    "kddg": ("{name: kddg, weight: 1, teacher: {name: finished_run, path: EARLIER}}", []),
}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A run with class scores, two subclasses of each class."""
    config = configured("distill=[{name: subclass_spread, weight: 1}]", "classes={subclasses: 2}", "train.epochs=1")
    return run(config, tmp_path_factory.mktemp("earlier") / "run").folder


@pytest.mark.parametrize("name", COMBINED)
def test_a_method_trains_an_auxiliary_head_beside_a_pair_loss_and_another_method(tmp_path, earlier, name):
    term, classes = COMBINED[name]
    term = term.replace("EARLIER", str(earlier))
    lists = "{name: lsd, weight: 50}"
    config = configured(f"distill=[{term}, {lists}]", "metric_loss=ContrastiveLoss", "train.epochs=3", *classes)
    result = run(config, tmp_path / "run")
    history = result.fit.history
    assert {"train/metric", f"train/{name}", "train/lsd", "train/classes"} <= set(history[-1])
    assert all(row[f"train/{name}"] != 0 for row in history)
    assert history[-1]["train/classes"] < history[0]["train/classes"]
    assert not any("exit" in key for key, _ in EmbeddingModel.from_pretrained(tmp_path / "run").named_parameters())


def test_the_lower_exit_is_trained_and_its_term_waits_for_the_second_phase(tmp_path):
    distill = "distill=[{name: ambiguity, weight: 1, schedule: {name: after, epochs: 2}}]"
    history = run(configured(distill, "metric_loss=ContrastiveLoss", "train.epochs=3"), tmp_path / "run").fit.history
    assert [row["weight/ambiguity"] for row in history] == [0, 0, 1]
    assert history[-1]["train/ambiguity_teacher"] < history[0]["train/ambiguity_teacher"]


MISFITS = {
    "other subclasses": (
        ["distill=[{name: subclass, weight: 1, teacher: {name: finished_run, path: EARLIER}}]", "classes.subclasses=3"],
        "has 2 subclasses of each class, the student 3",
    ),
    "one subclass": (
        ["distill=[{name: subclass_spread, weight: 1}]"],
        "at least 2 subclasses .* set classes.subclasses",
    ),
    "other classes": (
        ["distill=[{name: kddg, weight: 1, teacher: {name: finished_run, path: EARLIER}}]", "data.validation=0"],
        "scores 3 classes, the student is trained on 5",
    ),
    "no teacher": (["distill=[{name: kddg, weight: 1}]"], "needs either path, a folder, or fit"),
    "the deepest stage": (
        ["distill=[{name: ambiguity, weight: 1, teacher: {name: lower_exit, stage: 3}}]"],
        "stage must be an inner one, 0 to 2, got 3",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), MISFITS.values(), ids=MISFITS)
def test_parts_that_do_not_fit_are_refused_in_one_line(earlier, overrides, message):
    with pytest.raises(ConfigError, match=message) as refused:
        build(configured(*(override.replace("EARLIER", str(earlier)) for override in overrides)))
    assert "\n" not in str(refused.value)


WRONG = {
    "classes that nothing reads": (["classes={scale: 2}"], "no term of distill reads class scores"),
    "no scale": (["classes={scale: 0}"], "greater than 0"),
    "negative weight": (["metric_weight=-1"], "greater than or equal to 0"),
}


@pytest.mark.parametrize(("overrides", "message"), WRONG.values(), ids=WRONG)
def test_a_bad_section_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build(configured(*overrides))
