"""Ending a run whose validation scores rise no more, also where it is resumed."""

from pathlib import Path

import pytest

from dmlkd.config import load_config
from dmlkd.training import resume, run, running
from dmlkd.training.module import EmbeddingModule

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.epochs=8",
    "train.batch_size=48",
    "train.early_stop_epochs=2",
    "data.validation=0.4",
    "data.image_size=8",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1]",
]


@pytest.fixture
def scored(monkeypatch):
    """Validation gives these scores of MAP@R, epoch by epoch."""
    values = [0.3, 0.5, 0.5, 0.4, 0.9, 0.9, 0.9, 0.9]
    epochs: list[int] = []
    start = EmbeddingModule.on_train_epoch_start

    def on_train_epoch_start(self):
        epochs.append(self.current_epoch)
        start(self)

    def evaluate(embeddings, labels, metrics, group):
        return {"map@r": values[epochs[-1]], "recall@1": 0.5}

    monkeypatch.setattr(EmbeddingModule, "on_train_epoch_start", on_train_epoch_start)
    monkeypatch.setattr("dmlkd.training.module.evaluate", evaluate)


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]


def test_a_run_ends_after_so_many_epochs_without_a_new_best(scored, tmp_path):
    result = run(configured(), tmp_path / "run", quiet=True)
    assert result.metrics["epoch"] == {"last": 3, "best": 1, "reported": "best"}
    assert [row["epoch"] for row in result.fit.history] == [0, 1, 2, 3]  # an equal score is no new best
    assert result.fit.metrics["val/map@r"] == 0.5


def test_a_run_that_had_ended_early_stays_so_when_it_is_resumed(monkeypatch, scored, tmp_path):
    whole = run(configured(), tmp_path / "whole", quiet=True).folder

    def dying(*_, **__):
        raise KeyError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(running, "_save_model", dying)
        with pytest.raises(KeyError):
            run(configured(), tmp_path / "run", quiet=True)
    monkeypatch.setattr(EmbeddingModule, "training_step", lambda *_: pytest.fail("it was trained"))
    folder = resume(tmp_path / "run", quiet=True).folder
    for name in ("metrics.json", "log.csv", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
