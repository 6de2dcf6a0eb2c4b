"""Measuring a saved model again, on the test images of its run or of another data set."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dmlkd.config import DataConfig, checked_data
from dmlkd.errors import UserError
from dmlkd.export import embed
from dmlkd.models import EmbeddingModel
from dmlkd.retrieval import Scores, evaluate
from dmlkd.training.building import build_test_data
from dmlkd.training.loading import load_model, load_run


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
    run = load_run(folder)
    return _embedded(run.model, run.config.data)._replace(metrics=run.config.eval.metrics)


def embed_saved(model: Path, data: DataConfig) -> Embedded:
    """Embed the test images of a data set with a saved model.

    Args:
        model: the folder that ``save_pretrained`` wrote.
        data: which images, with the name of a registered data set.

    Raises:
        UserError: if the folder holds no model, or the images are not there or have other channels.
    """
    network, checked = load_model(model), checked_data(data)
    if checked.channels != network.in_channels:
        raise UserError(f"{model} takes images of {network.in_channels} channels, {data.name} has {checked.channels}")
    return _embedded(network, checked)


def _embedded(model: EmbeddingModel, data: DataConfig) -> Embedded:
    dataset = build_test_data(data)
    return Embedded(embed(model, dataset, workers=data.workers), dataset.labels)
