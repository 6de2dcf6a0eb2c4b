"""``dmlkd train``."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmlkd.cli.output import print_left_out, print_scores, print_seen, print_seen_of_fits
from dmlkd.errors import ConfigError
from dmlkd.launching import launcher

if TYPE_CHECKING:
    from dmlkd.training.plans import PlanResult
    from dmlkd.training.running import RunResult

_BASELINES = {"pixels": "raw pixels", "untrained": "untrained", "start": "as it started"}


def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file that describes a run or a plan, such as configs/digits.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, such as distill.0.weight=50; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, new or empty. [default: runs/NAME, or runs/NAME-2, ...]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run or plan that was stopped or killed, instead.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Short for --set train.deterministic=true.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors and the final scores.")] = False,
) -> None:
    """Train a model, measure it on unseen classes beside its baselines, and write a run folder.

    With a plan, do so for each of its fits in turn, in one folder.
    """
    if resume is not None:
        if config or overrides or out or deterministic:
            message = (
                "cannot be used with --config, --set, --out or --deterministic: RUN's own configuration says it all"
            )
            raise typer.BadParameter(message, context, param_hint="--resume")
        with _together():
            _resumed(resume, quiet=quiet)
    elif config is None:
        raise typer.BadParameter("is missing; or go on with a run: --resume", context, param_hint="--config")
    else:
        also = ["train.deterministic=true"] if deterministic else []
        with _together():
            _trained(config, [*(overrides or []), *also], out, quiet=quiet)


def _together() -> AbstractContextManager[object]:
    """From here on one of several processes, if it was started as that: what is wrong is said once."""
    if launcher() is None:
        return nullcontext()
    from dmlkd.training.processes import together

    return together()


def _trained(config: Path, overrides: list[str], out: Path | None, *, quiet: bool) -> None:
    from dmlkd.config import PlanConfig, load_training

    settings, source = load_training(config, overrides)
    from dmlkd.training import run, run_plan
    from dmlkd.training.processes import Processes

    folder = out or Processes.now().from_first(lambda: _free_folder(Path("runs"), config.stem))
    result: RunResult | PlanResult
    try:
        if isinstance(settings, PlanConfig):
            result = run_plan(settings, folder, quiet=quiet)
        else:
            result = run(settings, folder, quiet=quiet)
    except ConfigError as error:
        raise source.located(error) from None
    if _first():
        _print(result.metrics, result.folder)


def _resumed(folder: Path, *, quiet: bool) -> None:
    if (folder / "metrics.json").is_file():
        if _first():
            _print(json.loads((folder / "metrics.json").read_text(encoding="utf-8")), folder)
            print("it was finished already")
        return
    from dmlkd.models.saved import PLAN
    from dmlkd.training import resume, resume_plan

    again = resume_plan if (folder / PLAN).is_file() else resume
    result = again(folder, quiet=quiet)
    if _first():
        _print(result.metrics, folder)


def _first() -> bool:
    if launcher() is None:
        return True
    from dmlkd.training.processes import Processes

    return Processes.now().first


def _print(metrics: dict[str, Any], folder: Path) -> None:
    rows = {_BASELINES[name]: scores for name, scores in metrics["baselines"].items()}
    if fits := metrics.get("fits"):
        rows = {"raw pixels": rows["raw pixels"], **{name: found["test"] for name, found in fits.items()}}
    else:
        rows |= {f"{name} epoch": scores for name, scores in metrics["test_by_epoch"].items()}
        exits = metrics.get("exits", {}).items()
        rows |= {f"exit after {name}": found["test"] for name, found in exits if name != "whole"}
    test = metrics["data"]["test"]
    print_scores(f"Retrieval among {test['images']} images of {test['classes']} unseen classes, in %", rows)
    print_left_out(metrics["data"]["test_queries_left_out"])
    if fits and (seen := {name: found["seen"] for name, found in fits.items() if "seen" in found}):
        print_seen_of_fits(seen)
    elif "seen" in metrics:
        print_seen(metrics["seen"])
    print(f"{'plan' if fits else 'run'} folder: {folder}")


def _free_folder(parent: Path, name: str) -> Path:
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder
