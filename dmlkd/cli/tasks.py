"""``dmlkd tasks``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmlkd.cli.output import print_table

if TYPE_CHECKING:
    from dmlkd.training.arriving import TaskScores


def tasks(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Folder of a finished plan with data.tasks.")],
    metric: Annotated[str, typer.Option(help="A mean over queries, such as recall@1 or map@r.")] = "recall@1",
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON instead of a table.")] = False,
) -> None:
    """Measure what each fit of a plan keeps of earlier tasks, and how it searches the gallery of the one before."""
    from dmlkd.training.arriving import measure_tasks

    found = measure_tasks(plan, metric=metric)
    if json:
        from dataclasses import asdict

        from dmlkd.files import json_text

        print(json_text({"metric": metric, "order": found.order, "steps": [asdict(s) for s in found.steps]}))
        return
    _print(found, metric)


def _print(found: "TaskScores", metric: str) -> None:
    print(f"{metric} after each task, in %: on held-out images of the classes of each, and on unseen classes")
    tasks = [f"task {task}" for task in found.order]
    cells = []
    for step in found.steps:
        values = (*step.tasks, step.average, step.forgetting, step.old_tasks, step.unseen, step.old_unseen)
        cells.append((step.fit, *("" if value is None else f"{100 * value:.1f}" for value in values)))
    print_table(["after", *tasks, "average", "forgotten", "in old gallery", "unseen", "in old gallery"], cells)
    print("In old gallery: queries by the fit, gallery as the fit of the task before has embedded it.")
