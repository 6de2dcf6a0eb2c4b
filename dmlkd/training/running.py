"""A run from a configuration: train, measure on unseen classes beside the baselines, write the run folder."""

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from torch import nn

import dmlkd
from dmlkd.config import RunConfig
from dmlkd.data import DataSplits, ImageDataset
from dmlkd.data.preprocessing import Preprocessing, save_transforms
from dmlkd.errors import UserError
from dmlkd.export.card import model_card
from dmlkd.files import write_csv, write_json, write_text
from dmlkd.models import EmbeddingModel
from dmlkd.retrieval import Scores
from dmlkd.training.building import build
from dmlkd.training.building_data import build_preprocessing
from dmlkd.training.fitting import FitResult, fit
from dmlkd.training.measuring import embed_test

_RECORDED_VERSIONS = ("torch", "torchvision", "pytorch-metric-learning", "faiss-cpu", "lightning", "numpy")


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        metrics: what ``metrics.json`` holds (docs/run-folder.md).
        fit: the history and the epochs.
    """

    folder: Path
    metrics: dict[str, Any]
    fit: FitResult


def run(config: RunConfig, out: Path) -> RunResult:
    """Train as configured and write a run folder: see docs/run-folder.md.

    Two calls with the same configuration on the same machine give the same ``metrics.json``.

    Args:
        config: from :func:`dmlkd.config.load_config`.
        out: the run folder; must be new or empty.

    Raises:
        ConfigError: if the parts do not fit together.
        DataError: if the images are not there, incomplete or too few.
        UserError: if the folder is taken or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is already there and not an empty folder; choose another run folder")
    lightning.seed_everything(config.train.seed, workers=True, verbose=False)
    parts = build(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "config.yaml", config.to_yaml())
    except OSError as error:
        raise UserError(f"run folder {out} cannot be written: {error.strerror}") from None
    model, test = parts.model, parts.data.test
    baselines = {"pixels": _scores(nn.Flatten(), test, config), "untrained": _scores(model, test, config)}
    if parts.data.skipped:
        write_csv(out / "skipped.csv", [bad._asdict() for bad in parts.data.skipped])
    if parts.data.true_labels is not None:
        _record_noise(parts.data, out / "label_noise.csv")
    result = fit(
        model,
        parts.objective,
        parts.data,
        config.train,
        out=out,
        sampler=parts.sampler,
        workers=config.data.workers,
    )
    by_epoch = {"last": _scores(model, test, config)}
    reported = "last"
    if result.best_epoch is not None:
        reported = "best"
        if result.best_epoch == result.last_epoch:
            by_epoch["best"] = by_epoch["last"]
        else:
            result.load_best(model)
            by_epoch["best"] = _scores(model, test, config)
    row = result.history[result.last_epoch if result.best_epoch is None else result.best_epoch]
    metrics = {
        "test": dict(by_epoch[reported]),
        "val": {name.removeprefix("val/"): value for name, value in row.items() if name.startswith("val/")},
        "epoch": {"last": result.last_epoch, "best": result.best_epoch, "reported": reported},
        "test_by_epoch": {name: dict(scores) for name, scores in by_epoch.items()},
        "baselines": {name: dict(scores) for name, scores in baselines.items()},
        "data": {**parts.data.counts(), "test_queries_left_out": by_epoch[reported].left_out},
        "seed": config.train.seed,
        "versions": {"dmlkd": dmlkd.__version__, **{name: version(name) for name in _RECORDED_VERSIONS}},
    }
    _save_model(model, out / "model", build_preprocessing(config.data))
    write_text(out / "model" / "README.md", model_card(model, metrics, config.to_yaml()))
    write_json(out / "metrics.json", metrics)
    return RunResult(out, metrics, result)


def _scores(model: nn.Module, dataset: ImageDataset, config: RunConfig) -> Scores:
    return embed_test(model, dataset, metrics=config.eval.metrics, workers=config.data.workers).scores()


def _record_noise(data: DataSplits, path: Path) -> None:
    assert data.true_labels is not None
    wrong = np.flatnonzero(data.train.labels != data.true_labels)
    rows = [
        {
            "row": int(r),
            "path": str(data.train.paths[r]),
            "true_label": int(data.true_labels[r]),
            "label": int(data.train.labels[r]),
        }
        for r in wrong
    ]
    write_csv(path, rows)


def _save_model(model: EmbeddingModel, folder: Path, preprocessing: Preprocessing) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    save_transforms(temporary, preprocessing)
    temporary.replace(folder)
