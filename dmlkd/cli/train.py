"""``dmlkd train``."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from dmlkd.cli.output import print_left_out, print_scores
from dmlkd.errors import ConfigError
from dmlkd.launching import launcher


def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file that describes the run, such as configs/digits.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as distill.0.weight=50; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, new or empty. [default: runs/NAME, or runs/NAME-2, ...]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped or killed, instead.")
    ] = None,
) -> None:
    """Train a model, measure it on unseen classes beside its baselines, and write a run folder."""
    if resume is not None:
        if config or overrides or out:
            message = "cannot be used with --config, --set or --out: RUN/config.yaml says it all"
            raise typer.BadParameter(message, context, param_hint="--resume")
        with _together():
            _resumed(resume)
    elif config is None:
        raise typer.BadParameter("is missing; or go on with a run: --resume", context, param_hint="--config")
    else:
        with _together():
            _trained(config, overrides or [], out)


def _together() -> AbstractContextManager[object]:
    """From here on one of several processes, if it was started as that: what is wrong is said once."""
    if launcher() is None:
        return nullcontext()
    from dmlkd.training.processes import together

    return together()


def _trained(config: Path, overrides: list[str], out: Path | None) -> None:
    from dmlkd.config import load_config

    settings, source = load_config(config, overrides)
    from dmlkd.training import run
    from dmlkd.training.processes import Processes

    chosen = out or Processes.now().from_first(lambda: _free_folder(Path("runs"), config.stem))
    try:
        result = run(settings, chosen)
    except ConfigError as error:
        raise source.located(error) from None
    if _first():
        _print(result.metrics, result.folder)


def _resumed(folder: Path) -> None:
    if (folder / "metrics.json").is_file():
        if _first():
            _print(json.loads((folder / "metrics.json").read_text(encoding="utf-8")), folder)
            print("it was finished already")
        return
    from dmlkd.training import resume

    result = resume(folder)
    if _first():
        _print(result.metrics, folder)


def _first() -> bool:
    if launcher() is None:
        return True
    from dmlkd.training.processes import Processes

    return Processes.now().first


def _print(metrics: dict[str, Any], folder: Path) -> None:
    rows = {"raw pixels": metrics["baselines"]["pixels"], "untrained": metrics["baselines"]["untrained"]}
    rows |= {f"{name} epoch": scores for name, scores in metrics["test_by_epoch"].items()}
    test = metrics["data"]["test"]
    print_scores(f"Retrieval among {test['images']} images of {test['classes']} unseen classes, in %", rows)
    print_left_out(metrics["data"]["test_queries_left_out"])
    print(f"run folder: {folder}")


def _free_folder(parent: Path, name: str) -> Path:
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder
