"""Reading configurations: what is there, what --set changes, and one line for everything that is wrong."""

from pathlib import Path

import pytest
import yaml

from dmlkd.config import load_config
from dmlkd.errors import ConfigError

GOOD = """\
data: {name: digits, validation: 0}
model: {backbone: convnet4, dim: 64}
metric_loss: {name: MultiSimilarityLoss, alpha: 2, beta: 50, base: 0.5}
distill:
  - {name: lsd, weight: 50, temperature: 1.0}
train: {epochs: 20, batch_size: 80, per_class: 16, lr: 1e-3}
"""


@pytest.fixture
def good(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    return path


def test_what_is_read_is_what_is_written(good):
    config, _ = load_config(good)
    assert config.data.name == "digits"
    assert config.metric_loss.arguments == {"alpha": 2, "beta": 50, "base": 0.5}
    assert config.distill[0].arguments == {"temperature": 1.0}
    assert config.train.lr == 1e-3  # PyYAML alone reads 1e-3 as a string


def test_what_suits_the_data_is_filled_in(good):
    config, _ = load_config(good)
    assert (config.data.image_size, config.data.channels, config.data.transform) == (8, 1, "plain")


def test_the_resolved_configuration_reads_back_as_itself(good, tmp_path):
    config, _ = load_config(good, ["train.epochs=3", "distill.0.schedule=constant", "eval.metrics=[recall@1]"])
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml())
    assert load_config(again)[0] == config


def test_sections_are_frozen(good):
    config, _ = load_config(good)
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.epochs=3", lambda c: c.train.epochs == 3),
        ("train.lr=1e-5", lambda c: c.train.lr == 1e-5),
        ("distill.0.weight=7", lambda c: c.distill[0].weight == 7),
        ("distill.0.temperature=0.2", lambda c: c.distill[0].arguments["temperature"] == 0.2),
        ("distill.0.teacher.mode=train", lambda c: False),
        ("distill=[]", lambda c: c.distill == ()),
        ("distill.1={name: lsd, weight: 1}", lambda c: len(c.distill) == 2),
        ("distill.0.teacher=previous_epoch", lambda c: c.distill[0].teacher.name == "previous_epoch"),
        ("miner.name=MultiSimilarityMiner", lambda c: c.miner.name == "MultiSimilarityMiner"),
        ("metric_loss=ContrastiveLoss", lambda c: c.metric_loss.arguments == {}),
        ("metric_loss.distance={name: LpDistance, p: 1}", lambda c: c.metric_loss.arguments["distance"]["p"] == 1),
        ("metric_loss.distance=CosineSimilarity", lambda c: True),
        ("model.backbone_args.width=8", lambda c: c.model["backbone_args"] == {"width": 8}),
    ],
)
def test_set_changes_one_value(good, override, read):
    if override == "distill.0.teacher.mode=train":
        with pytest.raises(ConfigError, match=r"distill\.0\.teacher: key 'name' is missing"):
            load_config(good, [override])
    else:
        assert read(load_config(good, [override])[0])


def test_a_bare_name_becomes_a_part_when_something_is_set_below_it(good):
    config, _ = load_config(good, ["distill.0.teacher=previous_epoch", "distill.0.teacher.mode=train"])
    assert config.distill[0].teacher.arguments == {"mode": "train"}


BAD_FILES = [
    ("", "run.yaml: must be a mapping of sections such as data and train, found nothing"),
    ("- a\n", "run.yaml: must be a mapping of sections such as data and train, found a list"),
    ("data: {name: digits\n", "run.yaml:2: not valid YAML: expected ',' or '}'"),
    ("a: !!python/object/apply:os.system ['true']\n", "run.yaml:1: not valid YAML: could not determine a constructor"),
    ("a: &x [*x]\n", "run.yaml: not "),
    (GOOD + "train: {epochs: 3}\n", "run.yaml:7: train is given twice, first in line 6"),
    (GOOD.replace("epochs", "epoch"), "run.yaml:6: train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
    (GOOD.replace("train:", "trian:"), "run.yaml:6: trian: unknown key 'trian'; did you mean 'train'?"),
    (GOOD.replace("alpha: 2", "alhpa: 2"), "metric_loss.alhpa: unknown key 'alhpa'; did you mean 'alpha'?"),
    (GOOD.replace("temperature", "temprature"), "run.yaml:5: distill.0.temprature: unknown key"),
    (GOOD.replace("dim: 64", "dims: 64"), "run.yaml:2: model.dims: unknown key 'dims'; did you mean 'dim'?"),
    (GOOD.replace("name: digits,", "name: digits, rooot: x,"), "run.yaml:1: data.rooot: unknown key 'rooot'"),
    (GOOD.replace("weight: 50, ", ""), "run.yaml:5: distill.0: key 'weight' is missing"),
    (GOOD.replace("metric_loss", "loss"), "run.yaml: key 'metric_loss' is missing"),
    (GOOD.replace("epochs: 20", "epochs: many"), "run.yaml:6: train.epochs: must be a valid integer"),
    (GOOD.replace("epochs: 20", "epochs: 0"), "run.yaml:6: train.epochs: must be greater than or equal to 1, got 0"),
    (GOOD.replace("lr: 1e-3", "lr: -1"), "run.yaml:6: train.lr: must be greater than 0, got -1"),
    (GOOD.replace("lr: 1e-3", "ema_decay: 1"), "run.yaml:6: train.ema_decay: must be less than 1, got 1"),
    (GOOD.replace("lr: 1e-3", "ema_decay: 0"), "run.yaml:6: train.ema_decay: must be greater than 0, got 0"),
    (GOOD.replace("lr: 1e-3", "early_stop_epochs: 0"), "train.early_stop_epochs: must be greater than or equal to 1"),
    (GOOD.replace("lr: 1e-3", "skip_non_finite: -1"), "train.skip_non_finite: must be greater than or equal to 0"),
    (GOOD.replace("lr: 1e-3", "checkpoint_trunk: 5"), "run.yaml:6: train.checkpoint_trunk: must be "),
    (GOOD.replace("lr: 1e-3", "deterministic: maybe"), "run.yaml:6: train.deterministic: must be "),
    (GOOD.replace("lr: 1e-3", "wandb: ''"), "run.yaml:6: train.wandb: String should have at least 1 character, got ''"),
    (GOOD.replace("weight: 50", "weight: -5"), "distill.0.weight: must be greater than or equal to 0, got -5"),
    (GOOD.replace("weight: 50", "weight: .nan"), "distill.0.weight: must be "),
    (GOOD.replace("dim: 64", "dim: wide"), "run.yaml:2: model.dim: must be a valid integer"),
    (GOOD.replace("alpha: 2", "alpha: two"), "run.yaml:3: metric_loss.alpha: must be a number, got 'two'"),
    (GOOD.replace("MultiSimilarityLoss", "MultiSimilarity"), "did you mean 'MultiSimilarityLoss'?"),
    (GOOD.replace("MultiSimilarityLoss", "MultipleLosses"), "unknown class of pytorch_metric_learning.losses"),
    (
        GOOD.replace("MultiSimilarityLoss, alpha: 2, beta: 50, base: 0.5", "CrossBatchMemory, loss: {name: Nope}"),
        "metric_loss.loss.name: unknown class of pytorch_metric_learning.losses 'Nope'",
    ),
    (GOOD.replace("lsd,", "lsd, teacher: {name: remembered, rows: 3},"), "unknown key 'rows'"),
    (
        GOOD.replace("name: digits", "name: digit"),
        "run.yaml:1: data.name: unknown data set 'digit'; did you mean 'digits'?",
    ),
    (GOOD.replace("name: lsd", "name: lds"), "unknown self-distillation method 'lds'; did you mean 'lsd'?"),
    (
        GOOD.replace("validation: 0", "transform: plane"),
        "data.transform: unknown transform 'plane'; did you mean 'plain'?",
    ),
    (GOOD.replace("validation: 0", "channels: 2"), "run.yaml:1: data.channels: must be 1 or 3, got 2"),
    (GOOD + "eval: {metrics: [recall@0]}\n", "run.yaml:7: eval.metrics.0: unknown metric 'recall@0'"),
    (
        GOOD + "miner: {name: MultiSimilarityMiner, epsilon: x}\n",
        "run.yaml:7: miner.epsilon: must be a number, got 'x'",
    ),
    (GOOD.replace("data:", "data: 5 #"), "run.yaml:1: data: must be a valid dictionary"),
    (GOOD.replace("base: 0.5", "distance: 5"), "metric_loss.distance: must be a name or a mapping with a name, got 5"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[message for _, message in BAD_FILES])
def test_a_bad_file_is_one_line_that_says_where_and_what(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "--set train.epochs: must have the form section.key=value"),
        ("=3", "--set =3: must have the form section.key=value"),
        ("train..epochs=3", "--set train..epochs=3: must have the form section.key=value"),
        ("train.epochs=[", "--set train.epochs=[: value is not valid YAML"),
        ("train.epoch=3", "--set train.epoch=3: train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        ("distill.5.weight=3", "--set distill.5.weight=3: '5' must be an index from 0 to 1"),
        ("train.epochs.x=3", "--set train.epochs.x=3: 20 is a single value, it has no 'x' to set"),
        ("model.backbone=5", "--set model.backbone=5: model.backbone: must be a valid string, got 5"),
    ],
)
def test_a_bad_override_is_named(good, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(good, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        load_config(tmp_path / "nothing.yaml")


def test_nothing_but_registered_names_can_be_called(good):
    for name in ("os.system", "BaseMetricLossFunction", "torch:load", "GenericPairLoss"):
        with pytest.raises(ConfigError, match=r"unknown class of pytorch_metric_learning\.losses"):
            load_config(good, [f"metric_loss={{name: '{name}'}}"])


def test_the_root_comes_from_the_configuration_then_from_the_environment(tmp_path, good, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    monkeypatch.setenv("DMLKD_DATA", str(second))
    assert load_config(good, ["data.name=omniglot-small"])[0].data.arguments["root"] == second
    both = ["data.name=omniglot-small", f"data.root={first}"]
    assert load_config(good, both)[0].data.arguments["root"] == first
    monkeypatch.delenv("DMLKD_DATA")
    with pytest.raises(ConfigError, match=r"run\.yaml:1: data: needs a folder: set data.root or the environment"):
        load_config(good, ["data.name=omniglot-small"])
    with pytest.raises(ConfigError, match="folder /nowhere does not exist"):
        load_config(good, ["data.name=omniglot-small", "data.root=/nowhere"])


def test_yaml_alone_cannot_construct_objects(tmp_path):
    marker = tmp_path / "made"
    path = tmp_path / "run.yaml"
    path.write_text(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]\n")
    with pytest.raises(ConfigError):
        load_config(path)
    assert not marker.exists()
    assert yaml.safe_load("1")
