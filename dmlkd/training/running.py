"""A run from a configuration: train, measure on unseen classes beside the baselines, write the run folder."""

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

import dmlkd
from dmlkd.config import DataConfig, RunConfig, load_config
from dmlkd.config.load import checked_data
from dmlkd.data import ImageDataset
from dmlkd.errors import UserError
from dmlkd.export import embed
from dmlkd.models import EmbeddingModel
from dmlkd.retrieval import Scores, evaluate
from dmlkd.training.building import build, build_test_data
from dmlkd.training.files import write_json, write_text
from dmlkd.training.fitting import FitResult, fit

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
        UserError: if the folder is taken.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is already there and not an empty folder; choose another run folder")
    lightning.seed_everything(config.train.seed, workers=True, verbose=False)
    parts = build(config)
    model, test = parts.model, parts.data.test
    baselines = {"pixels": _scores(nn.Flatten(), test, config), "untrained": _scores(model, test, config)}
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.yaml", config.to_yaml())
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
    _save_model(model, out / "model")
    write_json(out / "metrics.json", metrics)
    return RunResult(out, metrics, result)


class Embedded(NamedTuple):
    """The test images of a data set, embedded.

    Attributes:
        embeddings: (N, D) on the CPU.
        labels: (N,) class ids.
        metrics: the names of what is to be measured; empty where nothing says so.
    """

    embeddings: Tensor
    labels: NDArray[np.int64]
    metrics: tuple[str, ...] = ()


def evaluate_run(folder: Path) -> Scores:
    """Measure the saved model of a run on its test images again.

    Raises:
        UserError: if the folder is no finished run, or the images are not there any more.
    """
    run = embed_run(folder)
    return evaluate(run.embeddings, run.labels, metrics=run.metrics)


def embed_run(folder: Path) -> Embedded:
    """Embed the test images of a run with its saved model.

    Raises:
        UserError: if the folder is no finished run, or the images are not there any more.
    """
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist")
    for name in ("config.yaml", "model/config.json", "model/model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a finished run: it has no {name}")
    config, _ = load_config(folder / "config.yaml")
    return _embedded(_saved_model(folder / "model"), config.data)._replace(metrics=config.eval.metrics)


def embed_saved(model: Path, data: DataConfig) -> Embedded:
    """Embed the test images of a data set with a saved model.

    Args:
        model: the folder that ``save_pretrained`` wrote.
        data: which images, with the name of a registered data set.

    Raises:
        UserError: if the folder holds no model, or the images are not there or have other channels.
    """
    for name in ("config.json", "model.safetensors"):
        if not (model / name).is_file():
            raise UserError(f"{model} is not a saved model: it has no {name}")
    network, checked = _saved_model(model), checked_data(data)
    if checked.channels != network.in_channels:
        raise UserError(f"{model} takes images of {network.in_channels} channels, {data.name} has {checked.channels}")
    return _embedded(network, checked)


def _embedded(model: nn.Module, data: DataConfig) -> Embedded:
    dataset = build_test_data(data)
    return Embedded(embed(model, dataset, workers=data.workers), dataset.labels)


def _saved_model(folder: Path) -> EmbeddingModel:
    try:
        return EmbeddingModel.from_pretrained(folder)
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder} cannot be read as a model: {' '.join(str(error).split())}") from None


def _scores(model: nn.Module, dataset: ImageDataset, config: RunConfig) -> Scores:
    embeddings = embed(model, dataset, workers=config.data.workers)
    return evaluate(embeddings, dataset.labels, metrics=config.eval.metrics)


def _save_model(model: EmbeddingModel, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    temporary.replace(folder)
