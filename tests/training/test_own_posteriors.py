"""Methods whose target comes from the model's own posteriors, in runs beside a pair loss and beside another term."""

from pathlib import Path

import pytest
import torch

from dmlkd.config import load_config
from dmlkd.errors import ConfigError
from dmlkd.models import ClassHead, load_classes
from dmlkd.training import run
from dmlkd.training.building import build

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.epochs=3",
    "train.batch_size=48",
    "data.validation=0.4",
    "data.image_size=8",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1, map@r]",
    "miner=null",
]
TERMS = {
    "ps_kd": "{name: ps_kd, weight: 1, share: 0.5}",
    "ps_kd, two classes kept": "{name: ps_kd, weight: 1, teacher: {name: remembered_posterior, top_k: 2}}",
    "bsd": "{name: bsd, weight: 1}",
    "bsd, one class kept": "{name: bsd, weight: 1, teacher: {name: evidence, discount: 0.8, top_k: 1}}",
    "beta_smoothing": "{name: beta_smoothing, weight: 1, teacher: {name: moving_average, decay: 0.9}}",
    "beta_smoothing by remembered confidence": "{name: beta_smoothing, weight: 1, teacher: remembered_posterior}",
}


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_it_trains_an_auxiliary_head_beside_a_pair_loss_and_another_term(tmp_path, term):
    lsd = "{name: lsd, weight: 5, schedule: constant}"
    config = configured(f"distill=[{term}, {lsd}]", "metric_loss=ContrastiveLoss")
    name = config.distill[0].name
    parts = build(config)
    assert isinstance(parts.student.classes, ClassHead)
    assert [part.label for part in parts.objective.terms] == [name, "lsd"]
    history = run(config, tmp_path / "run").fit.history
    assert [row[f"weight/{name}"] for row in history] == [1, 1, 1]
    assert [row["weight/lsd"] for row in history] == [0, 5, 5]
    assert history[-1]["train/lsd"] > 0
    assert history[-1][f"train/{name}"] < history[0][f"train/{name}"]
    untrained, trained = parts.student.classes.centres(), load_classes(tmp_path / "run" / "classes.safetensors")
    assert not torch.allclose(untrained, trained.centres())


def test_a_memory_of_posteriors_teaches_no_method_that_reads_embeddings():
    for teacher in ("remembered_posterior", "evidence"):
        terms = f"distill=[{{name: ps_kd, weight: 1}}, {{name: lsd, weight: 1, teacher: {teacher}}}]"
        with pytest.raises(ConfigError, match="ListwiseSelfDistillation needs its teacher's embeddings, got"):
            build(configured(terms))


WRONG = {
    "share": ("{name: ps_kd, weight: 1, share: 2}", "share must be a number from 0 to 1, got 2"),
    "unknown argument": ("{name: bsd, weight: 1, discount: 0.9}", "unknown key 'discount'"),
    "top_k": (
        "{name: bsd, weight: 1, teacher: {name: evidence, top_k: 0}}",
        "top_k must be a whole number of at least 1, got 0",
    ),
    "a": ("{name: beta_smoothing, weight: 1, a: -1}", "a must be a finite number above 0, got -1"),
}


@pytest.mark.parametrize(("term", "message"), WRONG.values(), ids=WRONG)
def test_a_bad_argument_is_refused(term, message):
    with pytest.raises(ConfigError, match=message):
        build(configured(f"distill=[{term}]"))
