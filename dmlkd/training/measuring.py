"""Measuring a saved model again, on the test images of its run or of another data set."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dmlkd.classification import PosteriorScores, measure_posteriors
from dmlkd.config import DataConfig, checked_data
from dmlkd.data import BatchShare, ImageDataset
from dmlkd.data.preprocessing import load_transforms
from dmlkd.errors import DataError, UserError
from dmlkd.export import embed
from dmlkd.export.embeddings import BATCH_SIZE
from dmlkd.models import ClassScores, EmbeddingModel, load_classes
from dmlkd.retrieval import Scores, evaluate
from dmlkd.retrieval.arriving import cross_search
from dmlkd.retrieval.distributed import gather_rows
from dmlkd.retrieval.metrics import CLUSTERING
from dmlkd.training.building_data import build_preprocessing, build_seen_images, build_test_data
from dmlkd.training.loading import CLASSES, load_run
from dmlkd.training.processes import Processes


class Embedded(NamedTuple):
    """The test images of a data set, embedded.

    Attributes:
        embeddings: (N, D) on the CPU: of all, or of the queries where the data set has a gallery.
        labels: (N,) class ids.
        metrics: the names of what is to be measured; empty where nothing says so.
        gallery: (G, D) of the gallery; None: the other queries are searched.
        gallery_labels: (G,) class ids.
    """

    embeddings: Tensor
    labels: NDArray[np.int64]
    metrics: tuple[str, ...] = ()
    gallery: Tensor | None = None
    gallery_labels: NDArray[np.int64] | None = None

    def arguments(self) -> dict[str, Any]:
        """What :func:`dmlkd.retrieval.evaluate` takes."""
        return {
            "embeddings": self.embeddings,
            "labels": self.labels,
            "gallery": self.gallery,
            "gallery_labels": self.gallery_labels,
        }

    def searching(self, old: "Embedded") -> dict[str, Any]:
        """What :func:`dmlkd.retrieval.evaluate` takes for these queries in the gallery as another model embedded it."""
        if not np.array_equal(self.labels, old.labels):
            raise UserError("the two models are given other images")
        return cross_search(
            new=self.embeddings,
            old=old.embeddings,
            labels=self.labels,
            old_gallery=old.gallery,
            gallery_labels=old.gallery_labels,
        )

    def scores(self) -> Scores:
        """Measure; clusterings, which have no queries and gallery, are left out where there is a gallery."""
        names = self.metrics if self.gallery is None else [n for n in self.metrics if n not in CLUSTERING]
        return evaluate(**self.arguments(), metrics=names, group=Processes.now().group)


def embed_test(model: nn.Module, dataset: ImageDataset, *, metrics: tuple[str, ...] = (), workers: int = 0) -> Embedded:
    """Embed test images; those whose role is "gallery" become the gallery, if there are any.

    Several processes embed every n-th of the batches that one process would, and each gets the embeddings of all.

    Args:
        model: images in, embeddings out.
        dataset: prepared for testing.
        metrics: names of what is to be measured.
        workers: processes that load images; 0: this one.

    Raises:
        DataError: if there are queries and no gallery, or the other way round.
    """
    embeddings = _embedded_by_all(model, dataset, workers)
    if dataset.role is None or not (dataset.role != "").any():
        return Embedded(embeddings, dataset.labels, metrics)
    query, gallery = (dataset.role == role for role in ("query", "gallery"))
    if not (query.any() and gallery.any()):
        raise DataError(f"the test images have roles, but there are {query.sum()} queries and {gallery.sum()} to find")
    rows = [torch.from_numpy(np.flatnonzero(part)) for part in (query, gallery)]
    return Embedded(embeddings[rows[0]], dataset.labels[query], metrics, embeddings[rows[1]], dataset.labels[gallery])


def _embedded_by_all(model: nn.Module, dataset: ImageDataset, workers: int) -> Tensor:
    processes = Processes.now()
    if not processes.several:
        return embed(model, dataset, workers=workers)
    share = BatchShare(len(dataset), batch_size=BATCH_SIZE, num_replicas=processes.size, rank=processes.rank)
    rows = np.concatenate(list(share))
    own = embed(model, dataset, batches=share, workers=workers)
    return gather_rows(own, torch.from_numpy(dataset.labels[rows]), torch.from_numpy(rows)).embeddings


def evaluate_run(folder: Path) -> Scores:
    """Measure the saved model of a run on its test images again.

    Raises:
        UserError: if the folder is no finished run, or the images are not there any more.
    """
    return embed_run(folder).scores()


def embed_run(folder: Path) -> Embedded:
    """Embed the test images of a run with its saved model.

    Raises:
        UserError: if the folder is no finished run, or the images are not there any more.
    """
    run = load_run(folder)
    return _embedded(run.model, run.config.data, run.folder / "model", run.config.eval.metrics)


def embed_saved(model: Path, data: DataConfig) -> Embedded:
    """Embed the test images of a data set with a saved model, prepared as that model's images are.

    Args:
        model: the folder that ``save_pretrained`` wrote; where it has no ``preprocessing.json``, the images are
            prepared as suits the data set.
        data: which images, with the name of a registered data set.

    Raises:
        UserError: if the folder holds no model, or the images are not there or have other channels.
    """
    return _embedded(EmbeddingModel.from_pretrained(model), checked_data(data), model)


@torch.no_grad()
def measure_seen(model: nn.Module, classes: ClassScores, dataset: ImageDataset, *, workers: int = 0) -> PosteriorScores:
    """Measure class scores on held-out images of the training classes.

    Args:
        model: images in, embeddings out.
        classes: the scores of the training classes.
        dataset: prepared for testing, its targets those of the training images.
        workers: processes that load images; 0: this one.
    """
    embeddings = embed(model, dataset, workers=workers).to(classes.centres().device)
    return measure_posteriors(logits=classes(embeddings)[0].cpu(), labels=torch.from_numpy(dataset.targets))


def measure_run_seen(folder: Path) -> PosteriorScores | None:
    """Measure the saved class scores of a run on its held-out images again; None where it held none out.

    Raises:
        UserError: if the folder is no finished run, or the images are not there any more.
    """
    run = load_run(folder)
    dataset = build_seen_images(run.config.data, seed=run.config.train.seed)
    if dataset is None:
        return None
    return measure_seen(run.model, load_classes(folder / CLASSES), dataset, workers=run.config.data.workers)


def _embedded(model: EmbeddingModel, data: DataConfig, folder: Path, metrics: tuple[str, ...] = ()) -> Embedded:
    preprocessing = load_transforms(folder) or build_preprocessing(data)
    if preprocessing.preparation.channels != model.in_channels:
        found = preprocessing.preparation.channels
        raise UserError(f"{folder} takes images of {model.in_channels} channels, {data.name} has {found}")
    return embed_test(model, build_test_data(data, preprocessing), metrics=metrics, workers=data.workers)
