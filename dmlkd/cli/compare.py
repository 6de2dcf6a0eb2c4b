"""``dmlkd compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmlkd.cli.output import print_table
from dmlkd.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN [RUN...]", help="Run folders, or files of dmlkd eval --per-query."),
    ],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Metric to compare; repeatable. [default: all per query]")
    ] = None,
    average: Annotated[str, typer.Option(help="micro (over queries) or macro (over classes).")] = "micro",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON instead of a table.")] = False,
) -> None:
    """Compare runs on the same test images with the first, query by query.

    Runs whose configurations differ in nothing but train.seed count as runs of one method.
    """
    from dmlkd.errors import suggestion
    from dmlkd.retrieval.comparison import caveats, in_words
    from dmlkd.retrieval.comparison import compare as compared

    if len(runs) < 2:
        raise UserError(f"a comparison needs at least two runs, got {len(runs)}")
    if average not in ("micro", "macro"):
        raise UserError(f"unknown average {average!r}{suggestion(average, ('micro', 'macro'))}")
    methods: dict[str, list[tuple[Path, dict[str, NDArray[np.float64]]]]] = {}
    classes = None
    for run in runs:
        values, own = _values(run, metrics)
        if classes is not None and (len(own) != len(classes) or (own != classes).any()):
            raise UserError(f"{run} was measured on other images than {runs[0]}: their classes differ")
        classes = own
        methods.setdefault(_method(run), []).append((run, values))
    if len(methods) < 2:
        raise UserError("all runs are of one method: their configurations differ in nothing but the seed")
    shared = [n for n in next(iter(methods.values()))[0][1] if all(n in v for m in methods.values() for _, v in m)]
    chosen = metrics or shared
    for name in chosen:
        if name not in shared:
            raise UserError(f"{name!r} has no values per query in every run{suggestion(name, shared)}")
    assert classes is not None
    names = [str(found[0][0]) + (f" and {len(found) - 1} more" if len(found) > 1 else "") for found in methods.values()]
    parts = list(methods.values())
    rows: list[dict[str, Any]] = []
    words = []
    for name in chosen:
        for other in range(1, len(parts)):
            arrays = [[values[name] for _, values in parts[i]] for i in (0, other)]
            result = compared(arrays[0], arrays[1], classes, average=average, seed=seed)  # type: ignore[arg-type]
            rows.append({"metric": name, "first": names[0], "second": names[other], **_described(result)})
            words.append(in_words(name, (names[0], names[other]), result))
    words += caveats([len(part) for part in parts], len(rows))
    _print(rows, words, json=json)


def _described(result: Any) -> dict[str, Any]:
    given = result._asdict()
    return {
        "first_mean": given["first"],
        "second_mean": given["second"],
        **{key: given[key] for key in ("difference", "low", "high", "wins", "ties", "losses", "runs")},
    }


def _values(run: Path, metrics: list[str] | None) -> "tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]":
    """Values per query and classes of a run folder, which is measured again, or of a file."""
    if run.is_file():
        from dmlkd.retrieval.files import read_per_query

        return read_per_query(run)
    from dmlkd.retrieval import evaluate
    from dmlkd.retrieval.metrics import parse
    from dmlkd.training.measuring import embed_run

    found = embed_run(run)
    scores = evaluate(**found.arguments(), metrics=metrics or [n for n in found.metrics if parse(n).ranked])
    assert scores.classes is not None
    return scores.per_query, scores.classes


def _method(run: Path) -> str:
    """What is equal for runs of one method: the configuration without the seed; files each stand for themselves."""
    if not run.is_dir():
        return str(run)
    from dmlkd.config import load_config
    from dmlkd.models.saved import run_folder

    config = load_config(run_folder(run) / "config.yaml")[0].model_dump(mode="json")
    config["train"].pop("seed")
    return repr(config)


def _print(rows: list[dict[str, Any]], words: list[str], *, json: bool) -> None:
    if json:
        from dmlkd.files import json_text

        print(json_text({"comparisons": rows, "words": words}))
        return
    title = "Second minus first, in points of %, with paired 95 % intervals; classes won, tied and lost by the second"
    columns = ("metric", "first", "second", "mean", "mean", "difference", "interval", "won/tied/lost")
    cells = []
    for row in rows:
        means = (f"{100 * row['first_mean']:.2f}", f"{100 * row['second_mean']:.2f}", f"{100 * row['difference']:+.2f}")
        interval = f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}"
        counts = f"{row['wins']}/{row['ties']}/{row['losses']}"
        cells.append((row["metric"], row["first"], row["second"], *means, interval, counts))
    print_table(columns, cells, title=title, left=(0, 1, 2), wrapped=True)
    for sentence in words:
        print(sentence)
