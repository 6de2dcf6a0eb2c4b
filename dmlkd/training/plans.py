"""Runs of runs: the fits of a plan one after another, each in a run folder of its own."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmlkd.config import Part, PlanConfig, PlanFit, RunConfig, load_config, load_training
from dmlkd.errors import ConfigError, UserError
from dmlkd.files import write_json, write_text
from dmlkd.models.saved import FITS, PLAN
from dmlkd.training.building import Parts, build_model, check_train
from dmlkd.training.building_data import build_sampler
from dmlkd.training.building_losses import build_losses
from dmlkd.training.folder import held_by_first, sweep
from dmlkd.training.processes import Processes, together
from dmlkd.training.running import begin, check_free, go_on, resumable, seeded_parts
from dmlkd.training.settings import check_settings, checkpointed_trunk
from dmlkd.training.stopping import Stop

OF_FITS = ("test", "val", "epoch", "seen")
"""What a plan's ``metrics.json`` repeats of each fit's, where it is there."""


@dataclass(frozen=True)
class PlanResult:
    """A finished plan.

    Attributes:
        folder: of the plan.
        metrics: what its ``metrics.json`` holds (docs/plans.md).
    """

    folder: Path
    metrics: dict[str, Any]


def run_plan(plan: PlanConfig, out: Path, *, quiet: bool = False) -> PlanResult:
    """Carry out the fits of a plan in order, and write a plan folder: see docs/plans.md.

    Two calls with the same plan on the same machine give the same ``metrics.json``.

    Args:
        plan: from :func:`dmlkd.config.load_training`.
        out: the plan folder; must be new or empty.
        quiet: show no progress.

    Raises:
        ConfigError: if the parts of a fit do not go together. What can be built without data and earlier fits is built
            for every fit before the first one starts.
        DataError: if the images are not there, incomplete or too few.
        TrainingError: if a loss or a weight is not finite, or a checkpoint cannot be written.
        UserError: if the folder is taken, in use, or cannot be written.
        Interrupted: if SIGINT or SIGTERM came; :func:`resume_plan` goes on from there.
    """
    with together() as processes:
        processes.from_first(lambda: check_free(out))
        for fit in plan.fits:
            _rehearse(fit)
        first = plan.fits[0]
        parts = {first.name: _parts(first, out / FITS / first.name)}

        def begin_plan() -> None:
            check_free(out)
            write_text(out / PLAN, plan.to_yaml())

        with held_by_first(out):
            processes.from_first(begin_plan)
            with resumable(out) as stop:
                return _carried_out(plan, out, stop, parts, quiet=quiet)


def resume_plan(folder: Path, *, quiet: bool = False) -> PlanResult:
    """Go on with a plan that was stopped or killed: at the checkpoint of the fit that was broken off.

    Finished fits are left as they are. On the CPU all ends with the same bits as if it had not been stopped.

    Args:
        folder: of the plan, as :func:`run_plan` left it at whatever moment.
        quiet: show no progress.

    Raises:
        UserError: if there is no plan, it is finished, or another process is at work on it; and as :func:`run_plan`.
    """
    with together() as processes:
        if not (folder / PLAN).is_file():
            raise UserError(f"{folder} is no plan folder: it has no {PLAN}")

        def go_on_with_plan() -> None:
            if (folder / "metrics.json").is_file():
                raise UserError(f"{folder} is finished; measure its last fit again with dmlkd eval --run {folder}")
            sweep(folder)

        with held_by_first(folder):
            processes.from_first(go_on_with_plan)
            plan, source = load_training(folder / PLAN)
            if not isinstance(plan, PlanConfig):
                raise UserError(f"{folder / PLAN} holds no plan, but the configuration of one run")
            try:
                with resumable(folder) as stop:
                    return _carried_out(plan, folder, stop, {}, quiet=quiet)
            except ConfigError as error:
                raise source.located(error) from None


def _carried_out(plan: PlanConfig, out: Path, stop: Stop, parts: dict[str, Parts], *, quiet: bool) -> PlanResult:
    def say(what: str) -> None:
        if not quiet and Processes.now().first:
            print(what, file=sys.stderr)

    results: dict[str, dict[str, Any]] = {}
    for number, fit in enumerate(plan.fits):
        stop.now()
        folder, place = out / FITS / fit.name, f"fit {number + 1}/{len(plan.fits)} {fit.name}"
        _check_same(fit, folder / "config.yaml")
        if (folder / "metrics.json").is_file():
            say(f"{place}: finished already")
        else:
            say(place)
            _carry_out(fit, folder, stop, parts.pop(fit.name, None), quiet=quiet)
        results[fit.name] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics = {
        **results[plan.fits[-1].name],
        "fits": {name: {key: found[key] for key in OF_FITS if key in found} for name, found in results.items()},
    }
    Processes.now().from_first(lambda: write_json(out / "metrics.json", metrics))
    return PlanResult(out, metrics)


def _check_same(fit: PlanFit, path: Path) -> None:
    """Refuse a fit that was begun with another configuration: the plan's file was changed since."""
    if path.is_file() and load_config(path)[0].to_yaml() != fit.config.to_yaml():
        raise UserError(
            f"{path} is not what {PLAN} says of {fit.name}: put {PLAN} back as it was, or remove {path.parent} and the "
            "fits that it taught"
        )


def _carry_out(fit: PlanFit, folder: Path, stop: Stop, parts: Parts | None, *, quiet: bool) -> None:
    with held_by_first(folder):
        if (folder / "config.yaml").is_file():
            try:
                go_on(folder, stop, quiet=quiet)
            except ConfigError as error:
                raise UserError(str(error)) from None  # it is of that folder's own file
        else:
            Processes.now().from_first(lambda: sweep(folder))
            begin(fit.config, parts or _parts(fit, folder), folder, stop, quiet=quiet)


def _parts(fit: PlanFit, folder: Path) -> Parts:
    try:
        return seeded_parts(fit.config, folder)
    except ConfigError as error:
        raise fit.located(error) from None


def _rehearse(fit: PlanFit) -> None:
    """Build what needs neither data nor an earlier fit, so that what its constructors refuse is known at once.

    Raises:
        ConfigError: with the path of what is refused.
    """
    config = _with_stand_ins(fit.config)
    assert config.data.channels is not None
    try:
        check_train(config.train)
        check_settings(config.train, validated=True)  # whether it is, the data will show
        build_sampler(np.repeat(np.arange(config.train.batch_size), config.train.per_class), config.train)
        model = build_model(config, in_channels=config.data.channels)
        checkpointed_trunk(config.train, model)
        build_losses(config, model, classes=100, rows=100)
    except ConfigError as error:
        raise fit.located(error) from None


def _with_stand_ins(config: RunConfig) -> RunConfig:
    """The configuration with something of the student's kind in the place of each earlier fit."""
    terms = [
        term.model_copy(update={"teacher": Part(name="previous_epoch")})
        if term.teacher is not None and {"fit", "fits"} & term.teacher.arguments.keys()
        else term
        for term in config.distill
    ]
    start = None if config.start is None or config.start.fit is not None else config.start
    return config.model_copy(update={"distill": tuple(terms), "start": start})
