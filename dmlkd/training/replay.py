"""The memory of earlier classes: which images of theirs a fit of a plan trains on again (``data.replay``)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler

from dmlkd.config import ReplayConfig, RunConfig
from dmlkd.data import DataSplits
from dmlkd.data.exemplars import herding_order
from dmlkd.errors import ConfigError
from dmlkd.export import embed
from dmlkd.export.embeddings import BATCH_SIZE
from dmlkd.models import ClassifyingModel, embedding_model
from dmlkd.training.building_data import build_training_images
from dmlkd.training.loading import earlier_fit, load_network
from dmlkd.training.processes import Processes
from dmlkd.training.recorded import REPLAYED, recorded_rows, trained_rows

Rows = NDArray[np.int64]
Embed = Callable[[Rows], NDArray[np.float32]]


def with_memory(config: RunConfig, data: DataSplits, *, runs: Path | None, recorded: Path | None = None) -> DataSplits:
    """The images of a run with those that it replays among the trained ones.

    The images of an earlier fit's classes are gone once it is over, but for the memory: of the classes of its own task
    exemplars are chosen now, by herding with its model; of classes that it replayed itself the best of its memory stay.

    Args:
        config: with ``data.replay``.
        data: of the run's own task.
        runs: the folder that earlier fits lie in.
        recorded: where a run that goes on keeps its choice, which is taken if it is there: so it does not depend on the
            machine that the model of the earlier fit is run on.

    Raises:
        ConfigError: if no class of the earlier fit is missing from this one's task, the memory has less than an image
            for each, or the nearest classes are asked for and the earlier fit has no class scores.
        UserError: if there is no such fit, or it is of other images.
    """

    def found() -> Rows:
        if recorded is not None and recorded.is_file():
            return recorded_rows(recorded, data.train.paths)
        return _chosen(config, data, runs)

    rows = Processes.now().from_first(found)
    own = np.arange(len(data.train)) if data.trained is None else data.trained
    return replace(data, trained=np.union1d(own, rows), replayed=rows)


def _chosen(config: RunConfig, data: DataSplits, runs: Path | None) -> Rows:
    replay = config.data.replay
    assert replay is not None
    folder = earlier_fit(replay.fit, runs)
    targets = data.train.targets
    own = np.arange(len(targets)) if data.trained is None else data.trained
    there = trained_rows(folder, data.train.paths)
    there = there[~np.isin(targets[there], targets[own])]
    each = _per_class(replay, len(np.unique(targets[there])))
    kept = recorded_rows(folder / REPLAYED, data.train.paths) if (folder / REPLAYED).is_file() else there[:0]

    network = load_network(folder)
    model = embedding_model(network)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = build_training_images(config.data, seed=config.train.seed).images
    model.to(device)

    def embedded(rows: Rows) -> NDArray[np.float32]:
        batches = BatchSampler(rows.tolist(), BATCH_SIZE, drop_last=False)
        return embed(model, images, batches=batches, workers=config.data.workers, device=device).numpy()

    if replay.nearest is not None:
        if not isinstance(network, ClassifyingModel):
            raise ConfigError(f"fit {replay.fit!r} has no class scores, by which classes are near", ("nearest",))
        weights = network.classes.class_weights().numpy()
        near = nearest_classes(embedded(own), targets[own], weights, np.unique(targets[there]), k=replay.nearest)
        there = there[np.isin(targets[there], near)]
    return exemplars(targets, there, kept, embedded, each=each)


def _per_class(replay: ReplayConfig, old: int) -> int:
    """How many images of each old class fit into the memory."""
    if not old:
        raise ConfigError(f"fit {replay.fit!r} trained on no class that is not in this one's task", ("fit",))
    if replay.images < old:
        raise ConfigError(f"must be at least one for each of {old} classes, got {replay.images}", ("images",))
    return replay.images // old


def exemplars(targets: Rows, there: Rows, kept: Rows, embedded: Embed, *, each: int) -> Rows:
    """Choose so many images of each class that is there: the first of those kept, else by herding.

    Args:
        targets: (N,) classes of the training images.
        there: (M,) ascending rows of the old classes that are at hand.
        kept: (K,) rows of an earlier memory, best first in each class.
        embedded: the unit embeddings of some rows.
        each: of a class.

    Returns:
        (R,) rows, best first in each class, classes ascending.
    """
    new = there[~np.isin(targets[there], targets[kept])]
    embeddings = embedded(new) if len(new) else np.empty((0, 1), np.float32)
    found = []
    for label in np.unique(targets[there]):
        earlier = kept[targets[kept] == label]
        if len(earlier):
            found.append(earlier[:each])
        else:
            of_class = targets[new] == label
            found.append(new[of_class][herding_order(embeddings[of_class], each)])
    return np.concatenate(found)


def nearest_classes(
    embeddings: NDArray[np.float32], targets: Rows, weights: NDArray[np.float32], old: Rows, *, k: int
) -> Rows:
    """The old classes that new ones are confused with most easily.

    For each new class those are the k old classes whose weights have the highest cosine with the mean of the class's
    embeddings; what comes back is the union.

    Args:
        embeddings: (N, D) of the images of new classes, by the old model.
        targets: (N,) their classes.
        weights: (C, D) of all classes, of unit length.
        old: (O,) the classes that the old model knows, ascending.
        k: for each new class.

    Returns:
        (U,) classes, ascending.
    """
    means = np.stack([embeddings[targets == label].mean(axis=0) for label in np.unique(targets)])
    order = np.argsort(-(means @ weights[old].T), axis=1, kind="stable")
    return np.unique(old[order[:, :k]])
