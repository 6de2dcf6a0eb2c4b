"""``dmlkd eval``."""

from pathlib import Path
from typing import Annotated

import typer

from dmlkd.cli.output import print_left_out, print_scores


def evaluate(
    run: Annotated[Path, typer.Option(help="Run folder of a finished training run.")],
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON instead of a table.")] = False,
) -> None:
    """Measure the saved model of a run on its unseen test classes."""
    from dmlkd.training.running import evaluate_run

    scores = evaluate_run(run)
    if json:
        from json import dumps

        print(dumps({**scores, "queries": scores.queries, "left_out": scores.left_out}, indent=2))
    else:
        print_scores(f"Retrieval of {scores.queries} queries on unseen classes, in %", {str(run): scores})
        print_left_out(scores.left_out)
