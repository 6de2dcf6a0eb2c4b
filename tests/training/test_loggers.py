"""Weights & Biases beside TensorBoard."""

import importlib.machinery
import sys
import types

import pytest

from dmlkd.config import TrainConfig, load_config
from dmlkd.errors import ConfigError
from dmlkd.training import loggers as made
from dmlkd.training import run
from dmlkd.training.building import build

SHORT = ["train.epochs=2", "data.image_size=8", "model.backbone_args.width=4", "eval.metrics=[recall@1]"]


class Project:
    """What ``wandb.init`` was given, and what was logged."""

    def __init__(self) -> None:
        self.given: list[dict] = []
        self.logged: list[dict] = []
        self.finished = 0

    def init(self, **given):
        self.given.append(given)
        return self

    def log(self, values, **_):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def project(monkeypatch):
    """A stub in place of the package."""
    stub, project = types.ModuleType("wandb"), Project()
    stub.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    lib, run_module = types.ModuleType("wandb.sdk.lib"), types.ModuleType("wandb.wandb_run")
    lib.RunDisabled, run_module.Run = type("RunDisabled", (), {}), type("Run", (), {})
    stub.init, stub.run = project.init, None
    modules = {"wandb": stub, "wandb.sdk": types.ModuleType("wandb.sdk"), "wandb.sdk.lib": lib}
    for name, module in {**modules, "wandb.wandb_run": run_module}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return project


def test_a_run_is_logged_to_the_project_named(configs, tmp_path, project):
    config = load_config(configs / "digits.yaml", [*SHORT, "train.wandb=embeddings"])[0]
    run(config, tmp_path / "first", quiet=True)
    (given,) = project.given
    assert (given["project"], given["name"], given["dir"]) == ("embeddings", "first", str(tmp_path / "first"))
    assert [v["train/loss"] for v in project.logged if "train/loss" in v]
    assert list((tmp_path / "first" / "tensorboard").iterdir())


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path, project):
    train = TrainConfig(wandb="embeddings")
    for _ in range(2):
        with made.loggers(train, tmp_path) as (_, wandb):
            wandb.experiment.log({})
    first, second = project.given
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert project.finished == 2


def test_without_the_package_it_is_said_how_to_install_it(configs, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = load_config(configs / "digits.yaml", [*SHORT, "train.wandb=embeddings"])[0]
    with pytest.raises(ConfigError, match=r"needs the package wandb: pip install 'dmlkd\[wandb\]'") as caught:
        build(config)
    assert caught.value.path == ("train", "wandb")


def test_nothing_but_tensorboard_unless_asked(tmp_path):
    with made.loggers(TrainConfig(), tmp_path) as logged:
        assert len(logged) == 1
    assert not (tmp_path / "wandb_id").exists()
