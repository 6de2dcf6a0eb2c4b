"""``dmlkd train``."""

from pathlib import Path
from typing import Annotated

import typer

from dmlkd.cli.output import print_left_out, print_scores
from dmlkd.errors import ConfigError


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
    print_scores(f"Retrieval among {test['images']} images of {test['classes']} unseen classes, in %", rows)
    print_left_out(metrics["data"]["test_queries_left_out"])
    print(f"run folder: {result.folder}")


def _free_folder(parent: Path, name: str) -> Path:
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder
