"""The moving average of the weights is what is validated, chosen, tested and saved."""

from pathlib import Path

import pytest
import torch
from lightning import Callback

from dmlkd import EmbeddingModel, embed, evaluate
from dmlkd.config import load_config
from dmlkd.training import fit, run
from dmlkd.training.building import build
from dmlkd.training.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[2]
SHORT = ["train.epochs=3", "data.image_size=8", "model.backbone_args.width=4", "train.batch_size=48"]


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]


class Weights(Callback):
    """The model's weights and buffers after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})


def by_hand(steps: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    average = dict(steps[0])
    for step in steps[1:]:
        for name, value in step.items():
            if value.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * value
    return average


def test_training_leaves_the_average_of_all_steps_in_the_model(tmp_path):
    config = configured("train.ema_decay=0.8", "train.epochs=2")
    parts = build(config)
    weights = Weights()
    fit(parts.model, parts.objective, parts.data, config.train, out=tmp_path, callbacks=[weights], quiet=True)
    expected = by_hand(weights.steps, 0.8)
    for name, value in parts.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], msg=name)
    assert not torch.equal(parts.model.head.weight, weights.steps[-1]["head.weight"])


def test_the_average_changes_nothing_of_what_is_trained(tmp_path):
    logs = []
    for name, extra in {"with": ["train.ema_decay=0.8"], "without": []}.items():
        torch.manual_seed(0)
        config = configured("data.validation=0.4", *extra)
        parts = build(config)
        (tmp_path / name).mkdir()
        logs.append(
            fit(parts.model, parts.objective, parts.data, config.train, out=tmp_path / name, quiet=True).history
        )
    averaged, plain = logs
    assert [row["train/loss"] for row in averaged] == [row["train/loss"] for row in plain]
    assert [row["val/map@r"] for row in averaged] != [row["val/map@r"] for row in plain]


def test_the_average_is_validated_chosen_tested_and_saved(tmp_path):
    result = run(
        configured("train.ema_decay=0.8", "data.validation=0.4", "train.lr=0.01"), tmp_path / "run", quiet=True
    )
    best = result.fit.best_epoch
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["state_dict"]
    model = EmbeddingModel.from_pretrained(tmp_path / "run" / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[f"average.network.module.{name}"])
    assert not torch.equal(model.head.weight, saved["model.head.weight"])
    val = build(result_config := configured("data.validation=0.4")).data.val
    assert result_config.train.ema_decay is None
    score = evaluate(embed(model, val), val.labels, metrics=["map@r"])["map@r"]
    assert score == pytest.approx(result.fit.history[best]["val/map@r"], abs=1e-6)


def test_the_best_epoch_is_loaded_as_its_average(monkeypatch, tmp_path):
    scores = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr("dmlkd.training.module.evaluate", lambda *_, **__: {"map@r": next(scores), "recall@1": 0.5})
    config = configured("train.ema_decay=0.8", "data.validation=0.4")
    parts = build(config)
    result = fit(parts.model, parts.objective, parts.data, config.train, out=tmp_path, quiet=True)
    assert result.best_epoch == 0
    result.load_best(parts.model)
    saved = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["state_dict"]
    assert torch.equal(parts.model.head.weight, saved["average.network.module.head.weight"])
    assert not torch.equal(parts.model.head.weight, saved["model.head.weight"])


def test_the_average_is_neither_trained_nor_in_training_mode(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            average = pl_module.average
            held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
            seen.append(
                any(module.training for module in average.averaged.modules())
                or any(id(p) in held or p.requires_grad for p in average.parameters())
            )

    config = configured("train.ema_decay=0.8", "train.epochs=1")
    parts = build(config)
    fit(parts.model, parts.objective, parts.data, config.train, out=tmp_path, callbacks=[Look()], quiet=True)
    assert seen
    assert not any(seen)
