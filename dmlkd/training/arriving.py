"""What the fits of a plan keep of earlier tasks, and whether each can search the gallery of the one before."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.config import PlanConfig, PlanFit, load_training, same_images
from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel
from dmlkd.models.saved import FITS, PLAN
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.arriving import forgetting, task_means
from dmlkd.training.building_data import build_task_images, build_test_data
from dmlkd.training.measuring import Embedded, embed_test


@dataclass(frozen=True)
class AfterTask:
    """What is measured once a task is learned: scores from 0 to 1, None where there is no such thing.

    Attributes:
        fit: the last one that trained on the task.
        task: which, from 0; None: all at once.
        tasks: on held-out images of each task's classes, searched among those of all tasks.
        average: of ``tasks``, over those learned so far.
        forgetting: what earlier tasks have lost of their best score since they were learned, on average.
        unseen: on the test classes.
        old_tasks: as ``average``, but in the gallery as the fit of the task before has embedded it.
        old_unseen: as ``unseen``, in the same.
    """

    fit: str
    task: int | None
    tasks: tuple[float, ...]
    average: float
    forgetting: float | None
    unseen: float
    old_tasks: float | None
    old_unseen: float | None


class TaskScores(NamedTuple):
    """The scores of a plan over its tasks.

    Attributes:
        order: the tasks as ``AfterTask.tasks`` has them: as they are learned.
        steps: after each.
    """

    order: tuple[int, ...]
    steps: tuple[AfterTask, ...]


class _Embedded(NamedTuple):
    """What one model makes of the held-out images of the tasks, and of the test images."""

    seen: Embedded
    test: Embedded


def measure_tasks(folder: Path, *, metric: str = "recall@1") -> TaskScores:
    """Measure the fits of a plan over the tasks: of each task the last fit, in order.

    Args:
        folder: of a plan whose fits have ``data.tasks`` and ``data.held_out_images``.
        metric: one that is a mean over queries.

    Raises:
        UserError: if it is no such plan or not finished, its fits have other images or dimensions, or there is no such
            metric.
    """
    fits = _fits_of_tasks(folder)
    data = fits[0].config.data
    held_out, test = build_task_images(data, seed=fits[0].config.train.seed), build_test_data(data)
    learned = [fit.config.data.task for fit in fits if fit.config.data.task is not None]
    order = (*learned, *(task for task in range(data.tasks or 0) if task not in learned))

    def of_tasks(arguments: Mapping[str, Any]) -> NDArray[np.float64]:
        scores = evaluate(**arguments, metrics=[metric])
        if metric not in scores.per_query:
            raise UserError(f"{metric} is no mean over queries, which could be taken over those of each task")
        means = task_means(scores.per_query[metric], held_out.tasks)
        if np.isnan(means).any():
            raise UserError(
                f"task {int(np.isnan(means).argmax())} has no two held-out images of one class: hold out a larger "
                "share (data.held_out_images)"
            )
        return means[list(order)]

    steps: list[AfterTask] = []
    before: _Embedded | None = None
    for number, fit in enumerate(fits):
        model = EmbeddingModel.from_pretrained(folder / FITS / fit.name)
        now = _Embedded(*(embed_test(model, images, workers=data.workers) for images in (held_out.images, test)))
        so_far = slice(None if fit.config.data.task is None else number + 1)
        tasks = of_tasks(now.seen.arguments())
        crossed = None if before is None else _crossed(now, before)
        steps.append(
            AfterTask(
                fit=fit.name,
                task=fit.config.data.task,
                tasks=tuple(tasks.tolist()),
                average=float(tasks[so_far].mean()),
                forgetting=forgetting(np.array([*(step.tasks for step in steps), tasks])) if steps else None,
                unseen=evaluate(**now.test.arguments(), metrics=[metric])[metric],
                old_tasks=None if crossed is None else float(of_tasks(crossed[0])[so_far].mean()),
                old_unseen=None if crossed is None else evaluate(**crossed[1], metrics=[metric])[metric],
            )
        )
        before = now
    return TaskScores(order, tuple(steps))


def _crossed(now: _Embedded, before: _Embedded) -> list[dict[str, Any]]:
    return [new.searching(old) for new, old in zip(now, before, strict=True)]


def _fits_of_tasks(folder: Path) -> list[PlanFit]:
    """The last fit of each task, in the order of the plan."""
    if not (folder / PLAN).is_file():
        raise UserError(f"{folder} is no plan folder: it has no {PLAN}")
    plan, _ = load_training(folder / PLAN)
    assert isinstance(plan, PlanConfig)
    last = {fit.config.data.task: fit for fit in plan.fits if fit.config.data.tasks is not None}
    fits = [fit for fit in plan.fits if fit in last.values()]
    if not fits:
        raise UserError(f"{folder} has no fit with data.tasks: its classes do not arrive over time")
    if None in last and len(fits) > 1:
        raise UserError(f"fit {last[None].name} trains on all tasks at once, beside fits of single ones")
    for fit in fits:
        if not fit.config.data.held_out_images:
            raise UserError(f"fit {fit.name} held no images out to measure its tasks on: set data.held_out_images")
        if not same_images(fit.config, fits[0].config):
            raise UserError(f"fits {fits[0].name} and {fit.name} have another data section or train.seed")
        if not (folder / FITS / fit.name / "metrics.json").is_file():
            raise UserError(f"fit {fit.name} is not finished; go on with: dmlkd train --resume {folder}")
    return fits
