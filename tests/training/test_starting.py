"""A model that starts from an earlier one's weights: which are taken over, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from dmlkd.config import StartConfig, load_config
from dmlkd.distill import FrozenTeacher
from dmlkd.errors import ConfigError, UserError
from dmlkd.models import EmbeddingModel
from dmlkd.training import run
from dmlkd.training.building import build
from dmlkd.training.starting import start_model
from dmlkd.training.teachers import finished_run

SHORT = [
    "train.epochs=1",
    "data.image_size=8",
    "data.transform=plain",
    "model.backbone_args.width=4",
    "model.dim=8",
    "eval.metrics=[recall@1]",
]


def model(dim: int = 8, width: int = 4, channels: int = 1) -> EmbeddingModel:
    return EmbeddingModel("convnet4", dim=dim, in_channels=channels, backbone_args={"width": width})


@pytest.fixture
def runs(tmp_path):
    """A folder with one finished run, as far as those who come after it read it."""
    model().save_pretrained(tmp_path / "first" / "model")
    (tmp_path / "first" / "metrics.json").write_text("{}")
    return tmp_path


def same(a, b) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_whole_model_or_its_trunk_is_taken_over(runs):
    first = EmbeddingModel.from_pretrained(runs / "first")
    whole, trunk = model(), model(dim=16)
    head = trunk.head.weight.clone()
    start_model(model=whole, start=StartConfig(fit="first"), runs=runs)
    start_model(model=trunk, start=StartConfig(fit="first", part="trunk"), runs=runs)
    assert same(whole, first)
    assert same(trunk.trunk, first.trunk)
    assert torch.equal(trunk.head.weight, head)


def test_a_folder_can_be_named_instead_of_a_fit(runs):
    started = model()
    start_model(model=started, start=StartConfig(path=str(runs / "first")), runs=None)
    assert same(started, EmbeddingModel.from_pretrained(runs / "first"))


@pytest.mark.parametrize(
    ("other", "part", "message"),
    [
        ({"dim": 16}, "model", r"head.weight is \[16, \d+\] here, \[8, \d+\] there; start.part = trunk takes no head"),
        ({"width": 8}, "model", r"the model of first is another: trunk\.\S+ is \[8.*\] here, \[4.*\] there$"),
        ({"width": 8}, "trunk", r"the trunk of first is another: "),
        ({"channels": 3}, "trunk", r"is \[4, 3, 3, 3\] here, \[4, 1, 3, 3\] there"),
    ],
)
def test_weights_of_other_shapes_are_refused_by_name(runs, other, part, message):
    with pytest.raises(UserError, match=message):
        start_model(model=model(**other), start=StartConfig(fit="first", part=part), runs=runs)


@pytest.mark.parametrize("name", ["..", "../first", "a/b", "", ".hidden"])
def test_no_name_leads_out_of_the_folder(runs, name):
    with pytest.raises(UserError, match="a fit's name must be of letters"):
        start_model(model=model(), start=StartConfig(fit=name), runs=runs / "first")


def test_a_fit_that_is_not_there_or_not_finished_is_named(runs):
    (runs / "second").mkdir()
    for name in ("second", "third"):
        with pytest.raises(UserError, match=f"fit '{name}' is no finished run beside this one, in "):
            finished_run(model(), classes=5, fit=name, runs=runs)
    with pytest.raises(UserError, match="fit 'first' is one of a plan, and this is no run of one"):
        finished_run(model(), classes=5, fit="first")


def test_a_finished_run_is_named_by_folder_or_as_a_fit_and_not_both(runs):
    taught = [
        finished_run(model(), classes=5, fit="first", runs=runs),
        finished_run(model(), classes=5, path=runs / "first"),
    ]
    assert all(isinstance(teacher, FrozenTeacher) for teacher in taught)
    assert same(taught[0].network, taught[1].network)
    for both in ({}, {"fit": "first", "path": runs / "first"}):
        with pytest.raises(UserError, match="needs either path, a folder, or fit, an earlier fit of the same plan"):
            finished_run(model(), classes=5, runs=runs, **both)


def test_a_run_starts_from_the_weights_and_says_so(configs, tmp_path):
    first = run(load_config(configs / "digits.yaml", SHORT)[0], tmp_path / "first")
    config, _ = load_config(configs / "digits.yaml", [*SHORT, "start=first"])
    assert same(build(config, tmp_path).model, EmbeddingModel.from_pretrained(first.folder))
    second = run(config, tmp_path / "second")
    assert set(second.metrics["baselines"]) == {"pixels", "start"}
    assert second.metrics["baselines"]["start"] == first.metrics["test"]
    assert json.loads((second.folder / "metrics.json").read_text()) == second.metrics


def test_what_it_starts_from_is_an_error_of_the_configuration(configs, tmp_path):
    config, source = load_config(configs / "digits.yaml", [*SHORT, "start={path: nowhere}"])
    with pytest.raises(ConfigError) as caught:
        build(config)
    assert (
        str(source.located(caught.value)) == "--set start={path: nowhere}: start: model folder nowhere does not exist"
    )


@pytest.fixture(scope="module")
def proxies(tmp_path_factory):
    """The folder of a run with proxies."""
    overrides = [*SHORT, "metric_loss=ProxyAnchorLoss", "miner=null"]
    config, _ = load_config(Path(__file__).parents[2] / "configs" / "digits.yaml", overrides)
    return run(config, tmp_path_factory.mktemp("proxies") / "first").folder


def with_proxies(configs, *overrides):
    start = "start={fit: first, metric_loss: true}"
    common = [*SHORT, "metric_loss=ProxyAnchorLoss", "miner=null", start]
    return load_config(configs / "digits.yaml", [*common, *overrides])[0]


def test_proxies_are_those_the_run_ended_with(configs, proxies):
    saved = torch.load(proxies / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    parts = build(with_proxies(configs), proxies.parent)
    assert torch.equal(parts.objective.metric_loss.proxies, saved["objective.metric_loss.proxies"])
    assert same(parts.model, EmbeddingModel.from_pretrained(proxies))
    assert parts.objective.metric_loss.proxies.requires_grad


def test_proxies_keep_their_classes_in_another_task(configs, proxies):
    parts = build(with_proxies(configs, "data.tasks=2", "data.task=1", "train.batch_size=32"), proxies.parent)
    assert len(parts.objective.metric_loss.proxies) == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metric_loss=ContrastiveLoss", "ContrastiveLoss has no weights to take over: leave out start.metric_loss"),
        ("metric_loss=ArcFaceLoss", r"the metric loss of first is another: W is \[8, 5\] here, not there there"),
        ("data.validation=0.4", r"the metric loss of first is another: proxies is \[3, 8\] here, \[5, 8\] there"),
    ],
)
def test_weights_of_another_metric_loss_are_refused(configs, proxies, override, message):
    with pytest.raises(ConfigError, match=message):
        build(with_proxies(configs, override, "train.batch_size=32"), proxies.parent)


def test_a_model_alone_has_no_metric_loss(configs, proxies):
    with pytest.raises(ConfigError, match="is no finished run, whose metric loss could be taken over"):
        build(with_proxies(configs, f"start={{path: {proxies / 'model'}, metric_loss: true}}"))
