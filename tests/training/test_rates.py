"""Parameter groups, schedules of the learning rate, and a trunk that waits for its head."""

import copy

import pytest
import torch
from lightning import Callback
from torch import nn

from dmlkd import Objective
from dmlkd.config import load_config
from dmlkd.config.schema import TrainConfig
from dmlkd.errors import ConfigError
from dmlkd.training import EmbeddingModule, fit, run
from dmlkd.training.building import build
from dmlkd.training.fitting import optimizer
from dmlkd.training.rates import lr_schedule, parameter_groups

SHORT = ["train.epochs=3", "data.image_size=8", "model.backbone_args.width=8", "data.transform=plain"]


def rates(folder, schedule: list[str], configs) -> list[float]:
    config, _ = load_config(configs / "digits.yaml", [*SHORT, "train.lr=0.01", *schedule])
    return [row.get("lr") for row in run(config, folder).fit.history]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (["train.lr_schedule=cosine"], [0.01, 0.0075, 0.0025]),
        (["train.lr_schedule=step", "train.lr_step_epochs=2"], [0.01, 0.01, 0.001]),
        (["train.lr_schedule=step", "train.lr_step_epochs=1", "train.lr_step_factor=0.5"], [0.01, 0.005, 0.0025]),
        ([], [None, None, None]),
    ],
)
def test_the_learning_rate_of_each_epoch_is_in_the_log(configs, tmp_path, schedule, expected):
    found = rates(tmp_path / "run", schedule, configs)
    assert found == (expected if expected[0] is None else pytest.approx(expected, rel=1e-5))


def test_every_group_follows_the_schedule_and_the_checkpoint_loads_without_unpickling(configs, tmp_path):
    overrides = ["train.lr_schedule=cosine", "train.lr=0.01", "train.trunk_lr=0.001", "train.metric_loss_lr=0.1"]
    overrides += ["metric_loss={name: ProxyAnchorLoss}", "miner=null"]
    config, _ = load_config(configs / "digits.yaml", [*SHORT, *overrides])
    folder = run(config, tmp_path / "run").folder
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    groups = saved["optimizer_states"][0]["param_groups"]
    trunk = len(list(build(config).model.trunk.parameters()))
    assert [(group["initial_lr"], len(group["params"])) for group in groups] == [(0.01, 2), (0.1, 1), (0.001, trunk)]
    assert [group["lr"] / group["initial_lr"] for group in groups] == pytest.approx([groups[0]["lr"] / 0.01] * 3)
    assert saved["lr_schedulers"][0]["T_max"] == 3


def test_parameters_without_gradient_are_in_no_group():
    a, b, c = (nn.Parameter(torch.zeros(1), requires_grad=asked) for asked in (True, True, False))
    groups = parameter_groups([a, b, c], [([b, c], 0.5), ([], 0.1)])
    assert groups == [{"params": [a]}, {"params": [b], "lr": 0.5}]
    assert parameter_groups([a, b], [([b], None)]) == [{"params": [a]}, {"params": [b]}]


@pytest.mark.parametrize("section", [{"lr_schedule": "step"}, {"lr_step_epochs": 3}])
def test_half_a_step_schedule_is_refused(section):
    with pytest.raises(ConfigError, match="lr_step_epochs goes with lr_schedule: step"):
        lr_schedule(TrainConfig(**section))


class Watch(Callback):
    """Copies of the model's state, one before the first epoch and one after each."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer, pl_module):
        self.states.append(copy.deepcopy(pl_module.model.state_dict()))

    def on_train_epoch_end(self, trainer, pl_module):
        self.on_train_start(trainer, pl_module)


def moved(watch: Watch, epoch: int) -> set[str]:
    before, after = watch.states[epoch : epoch + 2]
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("epochs", [0, 2, 3])
def test_only_the_head_moves_in_the_first_epochs(configs, tmp_path, epochs):
    overrides = [f"train.head_only_epochs={epochs}", "train.weight_decay=0.1", "data.validation=0.4"]
    config, _ = load_config(configs / "digits.yaml", [*SHORT, *overrides, "train.batch_size=48"])
    parts, watch = build(config), Watch()
    fit(parts.model, parts.objective, parts.data, config.train, out=tmp_path, callbacks=[watch])
    everything = set(parts.model.state_dict())
    assert any("running_mean" in name for name in everything)
    for epoch in range(3):
        expected = {"head.weight", "head.bias"} if epoch < epochs else everything
        assert moved(watch, epoch) == expected
    assert all(p.requires_grad for p in parts.model.parameters())


@pytest.mark.parametrize("argument", [{"trunk_lr": 0.1}, {"head_only_epochs": 1}])
def test_a_model_without_a_trunk_is_refused(argument):
    with pytest.raises(ValueError, match="need a model with a trunk, got Linear"):
        EmbeddingModule(
            nn.Linear(2, 2),
            Objective(lambda z, y, i: z.sum()),
            optimizer=optimizer(TrainConfig()),
            epochs=1,
            **argument,
        ).configure_optimizers()
