"""What commands print."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    left: Collection[int] = (0,),
    wrapped: bool = False,
) -> None:
    """Print a table, as wide as the terminal; a file or a pipe has no width that it would have to fit into.

    Args:
        columns: their headings.
        rows: a cell for each column.
        title: above it; None: none.
        left: which columns are words, to the left; the others are numbers, to the right.
        wrapped: whether numbers may be broken into lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        word = number in left
        table.add_column(column, justify="left" if word else "right", no_wrap=not word and not wrapped)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_scores(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print scores between 0 and 1 as a table of percentages, a row for each model, a column for each metric."""
    names = list(next(iter(rows.values())))
    cells = [
        (label, *(f"{100 * scores[name]:.1f}" if name in scores else "" for name in names))
        for label, scores in rows.items()
    ]
    print_table(["", *names], cells, title=title)


def print_left_out(count: int) -> None:
    """Say how many queries were not scored, if any were not."""
    if count:
        print(f"left out: {count} queries whose class has no other image to find")


def print_seen_of_fits(fits: Mapping[str, Mapping[str, float]]) -> None:
    """Print what was measured of class scores after each fit of a plan, a row for each, as the scores are."""
    names = list(next(iter(fits.values())))
    cells = [(label, *(f"{scores[name]:.3f}" for name in names)) for label, scores in fits.items()]
    print_table(["", *names], cells, title="Class scores on held-out images of the training classes")


def print_seen(scores: Mapping[str, float]) -> None:
    """Print what was measured of class scores on held-out images of the training classes."""
    print("Class scores on held-out images of the training classes")
    for name, value in scores.items():
        print(f"{name:<14}{value:.4f}")
