"""``dmlkd exits``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmlkd.cli.output import print_table
from dmlkd.errors import UserError

if TYPE_CHECKING:
    from dmlkd.training.exits import ExitReport


def exits(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished training run with exits.")],
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images at a time.")] = 64,
    seconds: Annotated[float, typer.Option(help="At least so long for each exit.")] = 1.0,
    device: Annotated[str, typer.Option(help="What runs them, such as cpu or cuda.")] = "cpu",
    metric: Annotated[str | None, typer.Option(help="The score to show. [default: the first of the run]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all scores as JSON instead of a table.")] = False,
) -> None:
    """Show what each exit of a run scores and costs, and how fast it is on this machine: to pick an encoder from."""
    from dmlkd.training.exits import measure_exits

    found = measure_exits(run, batch_size=batch_size, seconds=seconds, device=device)
    names = list(found[-1].test)
    if metric is not None and metric not in names:
        raise UserError(f"the run did not measure {metric!r}, but {', '.join(names)}")
    if json:
        from dmlkd.files import json_text

        rows = [{**one._asdict(), "folder": str(one.folder)} for one in found]
        print(json_text({"batch_size": batch_size, "device": device, "exits": rows}))
        return
    _print(found, metric or names[0], f"batches of {batch_size} on {device}")


def _print(found: "list[ExitReport]", metric: str, how: str) -> None:
    columns = ("exit", f"{metric}, %", "parameters", "multiply-adds", "of the whole", "images/s", "model")
    cells = [
        (
            one.name,
            f"{100 * one.test[metric]:.2f}",
            f"{one.parameters:,}",
            f"{one.multiply_adds:,}",
            f"{100 * one.multiply_adds / found[-1].multiply_adds:.0f} %",
            f"{one.images_per_second:,.0f}",
            str(one.folder),
        )
        for one in found
    ]
    title = f"Exits, shallow to deep; images a second as measured now, {how}"
    print_table(columns, cells, title=title, left=(0, len(columns) - 1))
