"""What commands print."""

import sys
from collections.abc import Mapping


def print_scores(title: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print scores between 0 and 1 as a table of percentages, a row for each model, a column for each metric."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    names = list(next(iter(rows.values())))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for label, scores in rows.items():
        table.add_row(label, *(f"{100 * scores[name]:.1f}" if name in scores else "" for name in names))
    # A file or a pipe has no width that the table would have to fit into.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_left_out(count: int) -> None:
    """Say how many queries were not scored, if any were not."""
    if count:
        print(f"left out: {count} queries whose class has no other image to find")


def print_seen_of_fits(fits: Mapping[str, Mapping[str, float]]) -> None:
    """Print what was measured of class scores after each fit of a plan, a row for each, as the scores are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = "Class scores on held-out images of the training classes"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("")
    names = list(next(iter(fits.values())))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for label, scores in fits.items():
        table.add_row(label, *(f"{scores[name]:.3f}" for name in names))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_seen(scores: Mapping[str, float]) -> None:
    """Print what was measured of class scores on held-out images of the training classes."""
    print("Class scores on held-out images of the training classes")
    for name, value in scores.items():
        print(f"{name:<14}{value:.4f}")
