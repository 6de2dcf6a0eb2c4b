"""The command line. Only what a command needs is imported, and only when it runs."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmlkd import __version__
from dmlkd.errors import ConfigError, UserError

if TYPE_CHECKING:
    from dmlkd.retrieval import Scores

app = typer.Typer(
    name="dmlkd",
    help="Metric learning with self-distilled embeddings: train, and measure retrieval on unseen classes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; what the user can mend is one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dmlkd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="YAML file that describes the run, such as configs/digits.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as distill.0.weight=50; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, new or empty. [default: runs/NAME, or runs/NAME-2, ...]")
    ] = None,
) -> None:
    """Train a model, measure it on unseen classes beside its baselines, and write a run folder."""
    from dmlkd.config import load_config

    settings, source = load_config(config, overrides or [])
    from dmlkd.training import run

    try:
        result = run(settings, out or _free_folder(Path("runs"), config.stem))
    except ConfigError as error:
        raise source.located(error) from None
    metrics = result.metrics
    rows = {"raw pixels": metrics["baselines"]["pixels"], "untrained": metrics["baselines"]["untrained"]}
    rows |= {f"{name} epoch": scores for name, scores in metrics["test_by_epoch"].items()}
    test = metrics["data"]["test"]
    _print_table(f"Retrieval among {test['images']} images of {test['classes']} unseen classes, in %", rows)
    _print_left_out(metrics["data"]["test_queries_left_out"])
    print(f"run folder: {result.folder}")


@app.command("eval")
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
        _print_table(f"Retrieval of {scores.queries} queries on unseen classes, in %", {str(run): scores})
        _print_left_out(scores.left_out)


def _free_folder(parent: Path, name: str) -> Path:
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def _print_table(title: str, rows: "Mapping[str, Mapping[str, float] | Scores]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    names = list(next(iter(rows.values())))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for label, scores in rows.items():
        table.add_row(label, *(f"{100 * scores[name]:.1f}" for name in names))
    # A file or a pipe has no width that the table would have to fit into.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _print_left_out(count: int) -> None:
    if count:
        print(f"left out: {count} queries whose class has no other image to find")
