"""A schedule among a method's own arguments, chosen by name as that of a term is."""

from pathlib import Path

import pytest

from dmlkd.config import load_config
from dmlkd.distill import Constant, LinearRamp, WarmUp
from dmlkd.errors import ConfigError
from dmlkd.training.building import build

ROOT = Path(__file__).parents[2]


def configured(term: str):
    overrides = ["data.image_size=8", "model.backbone_args.width=4", f"distill=[{term}]"]
    return load_config(ROOT / "configs" / "digits.yaml", overrides)[0]


GROWTHS = {
    "by default": ("{name: ps_kd, weight: 1}", LinearRamp(ends_full=True)),
    "by name": ("{name: ps_kd, weight: 1, growth: constant}", Constant()),
    "with arguments": ("{name: ps_kd, weight: 1, growth: {name: warm_up, epochs: 3}}", WarmUp(epochs=3)),
    "of label mixing": ("{name: label_mixing, weight: 1, teacher: previous_epoch}", Constant()),
}


@pytest.mark.parametrize(("term", "growth"), GROWTHS.values(), ids=GROWTHS)
def test_it_is_the_one_named(term, growth):
    assert build(configured(term)).objective.terms[0].method.growth == growth


def test_a_constant_share_is_the_same_in_every_epoch():
    method = build(configured("{name: ps_kd, weight: 1, share: 0.3, growth: constant}")).objective.terms[0].method
    shares = []
    for epoch in range(3):
        method.start_epoch(epoch, 3)
        shares.append(method._now)
    assert shares == [0.3] * 3


WRONG = {
    "unknown schedule": ("{name: ps_kd, weight: 1, growth: linear}", "unknown schedule 'linear'"),
    "unknown argument": ("{name: ps_kd, weight: 1, growth: {name: warm_up, epoch: 2}}", "unknown key 'epoch'"),
    "bad number": (
        "{name: ps_kd, weight: 1, growth: {name: warm_up, epochs: 0}}",
        "epochs must be a whole number of at least 1",
    ),
    "no schedule": ("{name: ps_kd, weight: 1, growth: 0.5}", "must be a name or a mapping with a name, got 0.5"),
    "a method without": ("{name: lsd, weight: 1, growth: constant}", "unknown key 'growth'"),
}


@pytest.mark.parametrize(("term", "message"), WRONG.values(), ids=WRONG)
def test_a_bad_one_is_refused_where_it_stands(term, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(configured(term))
    assert "distill.0" in str(caught.value) or caught.value.path[:2] == ("distill", 0)
