"""SFR and dynamic smoothing in runs, beside a pair loss and beside other terms; what a configuration is told."""

from pathlib import Path

import pytest

from dmlkd.config import load_config
from dmlkd.distill import sfr
from dmlkd.errors import ConfigError
from dmlkd.models import ClassHead
from dmlkd.training import run
from dmlkd.training.building import build

pytest.importorskip("ot", reason="POT is not installed: pip install 'dmlkd[ot]'")

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.epochs=3",
    "train.batch_size=48",
    "data.validation=0.4",
    "data.image_size=16",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1, map@r]",
    "miner=null",
    "metric_loss=ContrastiveLoss",
]
SFR, SMOOTHING = "{name: sfr, weight: 1, stage: 0}", "{name: dynamic_smoothing, weight: 1}"


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]


def test_they_train_beside_pairs_lists_and_each_other(tmp_path):
    config = configured(f"distill=[{SFR}, {SMOOTHING}, {{name: lsd, weight: 5, schedule: constant}}]")
    history = run(config, tmp_path / "run").fit.history
    assert [row["weight/sfr"] for row in history] == [1, 1, 1]
    for name in ("sfr", "dynamic_smoothing"):
        assert 0 < history[-1][f"train/{name}"] < history[0][f"train/{name}"]
    assert history[-1]["train/lsd"] > 0


def test_smoothing_holds_the_label_so_no_further_cross_entropy_is_added():
    parts = build(configured(f"distill=[{SMOOTHING}]"))
    assert isinstance(parts.student.classes, ClassHead)
    assert [term.label for term in parts.objective.terms] == ["dynamic_smoothing"]


def test_sfr_asks_for_no_class_scores_and_may_be_named_for_several_stages():
    parts = build(configured(f"distill=[{SFR}, {{name: sfr, weight: 1, stage: 2}}]"))
    assert parts.student is parts.model
    assert [(term.label, term.method.stage) for term in parts.objective.terms] == [("sfr_0", 0), ("sfr_1", 2)]


WRONG = {
    "no such stage": ("{name: sfr, weight: 1, stage: 3}", "stage must be an inner one, 0 to 2, got 3"),
    "epsilon": ("{name: sfr, weight: 1, epsilon: 0}", "epsilon must be a finite number above 0, got 0"),
    "channels": ("{name: sfr, weight: 1, groups: 3}", "groups must divide the 4 channels"),
    "a teacher": ("{name: sfr, weight: 1, teacher: previous_epoch}", "takes no teacher"),
    "smoothing": ("{name: dynamic_smoothing, weight: 1, epsilon: 2}", "epsilon must be a number from 0 to 1, got 2"),
    "unknown": ("{name: dynamic_smoothing, weight: 1, share: 2}", "unknown key 'share'"),
}


@pytest.mark.parametrize(("term", "message"), WRONG.values(), ids=WRONG)
def test_a_bad_argument_is_refused(term, message):
    with pytest.raises(ConfigError, match=message):
        build(configured(f"distill=[{term}]"))


def test_without_pot_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sfr, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'dmlkd\[ot\]'") as caught:
        build(configured(f"distill=[{SFR}]"))
    assert "\n" not in str(caught.value)
