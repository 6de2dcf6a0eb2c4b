"""The command line: one file a command. Only what a command needs is imported, and only when it runs."""

import sys
from typing import Annotated

import typer

from dmlkd import __version__
from dmlkd.cli.audit import audit
from dmlkd.cli.compare import compare
from dmlkd.cli.data import app as data
from dmlkd.cli.embed import embed
from dmlkd.cli.evaluate import evaluate
from dmlkd.cli.exits import exits
from dmlkd.cli.export import export
from dmlkd.cli.fidelity import fidelity
from dmlkd.cli.index import index
from dmlkd.cli.tasks import tasks
from dmlkd.cli.train import train
from dmlkd.errors import Interrupted, UserError

__all__ = ["app", "main"]

app = typer.Typer(
    name="dmlkd",
    help="Metric learning with self-distilled embeddings: train, and measure retrieval on unseen classes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("compare")(compare)
app.command("fidelity")(fidelity)
app.command("exits")(exits)
app.command("tasks")(tasks)
app.command("embed")(embed)
app.command("export")(export)
app.add_typer(index, name="index")
app.command("audit")(audit)
app.add_typer(data)


def main() -> None:
    """Run the command line; what the user can mend is one line on standard error and exit code 2.

    A run that a signal stopped is one line with the command that goes on, and exit code 128 + the signal's number.
    """
    try:
        app(prog_name="dmlkd")
    except UserError as error:
        if not error.said:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        if not stopped.said:
            print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signum)


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
