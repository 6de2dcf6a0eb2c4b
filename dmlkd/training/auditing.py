"""Auditing the labels that a run was trained with."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.export import embed
from dmlkd.retrieval.audit import Detection, LabelAudit, audit_labels, detection
from dmlkd.training.building_data import build_training_images
from dmlkd.training.loading import load_run


class RunAudit(NamedTuple):
    """What the neighbours of a run's training images say of their labels.

    Attributes:
        audit: in row order of the training images.
        paths: (N,) where each image is, as in the data set's table.
        labels: (N,) the labels the run was trained with.
        names: of each label.
        wrong: (N,) whether the run made the label wrong on purpose; None: it made none wrong.
    """

    audit: LabelAudit
    paths: NDArray[np.str_]
    labels: NDArray[np.int64]
    names: dict[int, str]
    wrong: NDArray[np.bool_] | None

    def table(self) -> dict[str, list[object]]:
        """Columns, the most suspicious image first, those without a score last."""
        order = self.audit.order()
        labels, likelier = self.labels[order].tolist(), self.audit.likelier[order].tolist()
        columns: dict[str, list[object]] = {
            "row": order.tolist(),
            "path": [str(path) for path in self.paths[order]],
            "label": labels,
            "likelier_label": likelier,
            "score": [None if np.isnan(value) else value for value in self.audit.score[order].tolist()],
            "own_share": self.audit.own_share[order].tolist(),
            "likelier_share": self.audit.likelier_share[order].tolist(),
            "label_name": [self.names[label] for label in labels],
            "likelier_name": [self.names[label] for label in likelier],
        }
        if self.wrong is not None:
            columns["made_wrong"] = self.wrong[order].tolist()
        return columns

    def found(self) -> Detection | None:
        """How many of the labels made wrong the audit finds; None where there are none, or no others, to find."""
        if self.wrong is None:
            return None
        judged = self.wrong[~np.isnan(self.audit.score)]
        return None if judged.all() or not judged.any() else detection(self.audit, self.wrong)


def audit_run(folder: Path, *, k: int = 100, temperature: float = 0.05) -> RunAudit:
    """Audit the training labels of a run with its saved model, the images prepared as for testing.

    The labels are those it was trained with, whatever noise it put into them. Held-out validation classes are not
    among them; images that a fold or a task left out are.

    Args:
        folder: the run folder.
        k: how many neighbours vote.
        temperature: of the softmax that weights their votes.

    Raises:
        UserError: if the folder is no finished run, the images are not there any more or are others than the run
            recorded, or a number is out of range.
    """
    folder, config, model = load_run(folder)
    images, class_names, true_labels = build_training_images(config.data, seed=config.train.seed)
    wrong = None
    if true_labels is not None:
        wrong = images.labels != true_labels
        _check_recorded(folder / "label_noise.csv", np.flatnonzero(wrong), images.labels[wrong])
    embeddings = embed(model, images, workers=config.data.workers)
    audit = audit_labels(embeddings, images.labels, k=k, temperature=temperature)
    names = dict(zip(np.unique(images.labels).tolist(), map(str, class_names), strict=True))
    return RunAudit(audit, images.paths, images.labels, names, wrong)


def _check_recorded(path: Path, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    """Refuse labels that are not those the run recorded when it made some wrong."""
    if not path.is_file():
        raise UserError(f"{path.parent} is not a finished run: it has no {path.name}")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            recorded = [(row.get("row"), row.get("label")) for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if recorded != [(str(row), str(label)) for row, label in zip(rows, labels, strict=True)]:
        raise UserError(f"{path} does not fit the training images: they are not those the run was trained on")
