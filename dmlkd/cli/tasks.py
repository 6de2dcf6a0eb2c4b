"""``dmlkd tasks``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    print(f"{metric} after each task, in %: on held-out images of the classes of each, and on unseen classes")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("after")
    for name in (*(f"task {task}" for task in found.order), "average", "forgotten", "in old gallery"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("unseen", "in old gallery"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in found.steps:
        values = (*step.tasks, step.average, step.forgetting, step.old_tasks, step.unseen, step.old_unseen)
        table.add_row(step.fit, *("" if value is None else f"{100 * value:.1f}" for value in values))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print("In old gallery: queries by the fit, gallery as the fit of the task before has embedded it.")
