"""A run from a configuration: train, measure on unseen classes beside the baselines, write the run folder."""

import errno
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from torch import nn

from dmlkd.config import RunConfig, load_config
from dmlkd.data import DataSplits, ImageDataset
from dmlkd.data.preprocessing import Preprocessing, save_transforms
from dmlkd.errors import ConfigError, Interrupted, TrainingError, UserError
from dmlkd.export.card import model_card
from dmlkd.files import write_csv, write_json, write_text
from dmlkd.models import ClassifyingModel, EmbeddingModel, cost, fingerprint, save_classes
from dmlkd.retrieval import Scores
from dmlkd.training.building import Parts, build
from dmlkd.training.building_data import build_preprocessing
from dmlkd.training.determinism import determinism
from dmlkd.training.fitting import FitResult, fit
from dmlkd.training.folder import LOCK, held_by_first, sweep
from dmlkd.training.loading import CLASSES, EXITS, WHOLE
from dmlkd.training.measuring import embed_test, measure_seen
from dmlkd.training.processes import Processes, together
from dmlkd.training.provenance import record, versions
from dmlkd.training.recorded import LEFT_OUT, REPLAYED, record_rows
from dmlkd.training.stopping import Stop

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        metrics: what ``metrics.json`` holds (docs/run-folder.md).
        fit: the history and the epochs.
    """

    folder: Path
    metrics: dict[str, Any]
    fit: FitResult


def run(config: RunConfig, out: Path, *, quiet: bool = False) -> RunResult:
    """Train as configured and write a run folder: see docs/run-folder.md.

    Where torchrun or ``srun`` has started several processes, all of them call this and train together: see
    docs/distributed.md. All get the result, the first writes.

    Two calls with the same configuration on the same machine give the same ``metrics.json``.

    Args:
        config: from :func:`dmlkd.config.load_config`.
        out: the run folder; must be new or empty.
        quiet: show no progress.

    Raises:
        ConfigError: if the parts do not fit together.
        DataError: if the images are not there, incomplete or too few.
        TrainingError: if a loss, a gradient or a weight is not finite, memory is not enough, a backbone cannot be
            compiled, or a checkpoint cannot be written.
        UserError: if the folder is taken, in use, or cannot be written.
        Interrupted: if SIGINT or SIGTERM came; :func:`resume` goes on from there.
    """
    with together() as processes:
        processes.from_first(lambda: check_free(out))
        parts = seeded_parts(config, out)
        with held_by_first(out):
            processes.from_first(lambda: check_free(out))
            with resumable(out) as stop:
                return begin(config, parts, out, stop, quiet=quiet)


def resume(folder: Path, *, quiet: bool = False) -> RunResult:
    """Go on with a run that was stopped or killed, from its last checkpoint.

    On the CPU it ends with the same bits in ``metrics.json``, ``log.csv`` and ``model/`` as if it had not been stopped.

    Args:
        folder: of the run, as :func:`run` left it at whatever moment.
        quiet: show no progress.

    Raises:
        UserError: if there is no run, it is finished, or another process is at work on it; and as :func:`run`.
    """
    with together() as processes:
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder} is no run folder: it has no config.yaml")
        with held_by_first(folder):
            processes.from_first(lambda: _check_unfinished(folder))
            with resumable(folder) as stop:
                return go_on(folder, stop, quiet=quiet)


def _check_unfinished(folder: Path) -> None:
    if (folder / "metrics.json").is_file():
        raise UserError(f"{folder} is finished; measure it again with dmlkd eval --run {folder}")


def check_free(out: Path) -> None:
    """Refuse a folder with anything in it.

    Raises:
        UserError: naming it.
    """
    if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise UserError(f"{out} is already there and not an empty folder; choose another run folder")


def seeded_parts(config: RunConfig, out: Path) -> Parts:
    """What a run is made of, with all random numbers begun from its seed."""
    lightning.seed_everything(config.train.seed, workers=True, verbose=False)
    parts = build(config, out.parent, recorded=out / REPLAYED)
    processes = Processes.now()
    processes.check_same("images", parts.data.counts())
    processes.check_same("a network", fingerprint(parts.model))
    return parts


def begin(config: RunConfig, parts: Parts, out: Path, stop: Stop, *, quiet: bool = False) -> RunResult:
    """Carry out a run in a folder that is held, from its start; in all processes."""
    Processes.now().from_first(lambda: write_text(out / "config.yaml", config.to_yaml()))
    with determinism(config.train.deterministic):
        return _run(config, parts, out, stop, resumed=False, quiet=quiet)


def go_on(folder: Path, stop: Stop, *, quiet: bool = False) -> RunResult:
    """Go on with a run that is not finished, in a folder that is held; in all processes."""
    Processes.now().from_first(lambda: sweep(folder))
    config, source = load_config(folder / "config.yaml")
    try:
        parts = seeded_parts(config, folder)
    except ConfigError as error:
        raise source.located(error) from None
    with determinism(config.train.deterministic):
        return _run(config, parts, folder, stop, resumed=True, quiet=quiet)


@contextmanager
def resumable(out: Path) -> Iterator[Stop]:
    """Listen to signals, and say how to go on where one of them, or a full disk, breaks off what happens within.

    Args:
        out: the folder that is to be resumed then.
    """
    stop = Stop(Processes.now().largest)
    again = f"dmlkd train --resume {shlex.quote(str(out))}"
    try:
        with stop.listening():
            yield stop
    except Interrupted as stopped:
        raise Interrupted(stopped.signum, f"go on with: {again}") from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise TrainingError(f"{out} cannot be written: {error.strerror}; make room, then: {again}") from error


def _run(config: RunConfig, parts: Parts, out: Path, stop: Stop, *, resumed: bool, quiet: bool) -> RunResult:
    processes = Processes.now()
    processes.from_first(lambda: _record(parts.data, out))
    model, test = parts.model, parts.data.test
    start = "untrained" if config.start is None else "start"
    baselines = {"pixels": _scores(nn.Flatten(), test, config), start: _scores(model, test, config)}
    result = fit(
        parts.student,
        parts.objective,
        parts.data,
        config.train,
        out=out,
        sampler=parts.sampler,
        workers=config.data.workers,
        resume=resumed,
        stop=stop,
        quiet=quiet,
    )
    stop.now()
    by_epoch = {"last": _scores(model, test, config)}
    reported = "last"
    if result.best_epoch is not None:
        reported = "best"
        if result.best_epoch == result.last_epoch:
            by_epoch["best"] = by_epoch["last"]
        else:
            result.load_best(parts.student)
            by_epoch["best"] = _scores(model, test, config)
    encoders = parts.encoders()
    exits = {name: _costly(encoder, test, dict(_scores(encoder, test, config))) for name, encoder in encoders.items()}
    if exits:
        exits[WHOLE] = _costly(model, test, dict(by_epoch[reported]))
    seen = None
    if parts.data.seen is not None and isinstance(parts.student, ClassifyingModel):
        seen = measure_seen(model, parts.student.classes, parts.data.seen, workers=config.data.workers)._asdict()
    metrics = {
        "test": dict(by_epoch[reported]),
        "val": {name.removeprefix("val/"): value for name, value in result.metrics.items() if name.startswith("val/")},
        "epoch": {"last": result.last_epoch, "best": result.best_epoch, "reported": reported},
        **({} if seen is None else {"seen": seen}),
        **({"exits": exits} if exits else {}),
        "test_by_epoch": {name: dict(scores) for name, scores in by_epoch.items()},
        "baselines": {name: dict(scores) for name, scores in baselines.items()},
        "data": {**parts.data.counts(), "test_queries_left_out": by_epoch[reported].left_out},
        "seed": config.train.seed,
        "versions": versions(),
    }
    processes.from_first(lambda: _write_results(config, parts, encoders, metrics, out))
    return RunResult(out, metrics, result)


def _record(data: DataSplits, out: Path) -> None:
    record(out, data.counts())
    if data.skipped:
        write_csv(out / "skipped.csv", [bad._asdict() for bad in data.skipped])
    if data.trained is not None:
        record_rows(out / LEFT_OUT, data.train, data.left_out)
    if data.replayed is not None:
        record_rows(out / REPLAYED, data.train, data.replayed)
    if data.true_labels is not None:
        _record_noise(data, out / "label_noise.csv")


def _write_results(
    config: RunConfig, parts: Parts, encoders: dict[str, EmbeddingModel], metrics: dict[str, Any], out: Path
) -> None:
    preprocessing = build_preprocessing(config.data)
    for name, encoder in encoders.items():
        folder = out / EXITS / name
        _save_model(encoder, folder, preprocessing)
        write_text(folder / "README.md", model_card(encoder, metrics | metrics["exits"][name], config.to_yaml()))
    _save_model(parts.model, out / "model", preprocessing)
    write_text(out / "model" / "README.md", model_card(parts.model, metrics, config.to_yaml()))
    if isinstance(parts.student, ClassifyingModel):
        save_classes(parts.student.classes, out / CLASSES)
    write_json(out / "metrics.json", metrics)


def _costly(model: EmbeddingModel, test: ImageDataset, scores: dict[str, float]) -> dict[str, Any]:
    """What a model scores beside what it costs."""
    return {"test": scores, **cost(model, shape=test[0].images.shape)._asdict()}


def _scores(model: nn.Module, dataset: ImageDataset, config: RunConfig) -> Scores:
    return embed_test(model, dataset, metrics=config.eval.metrics, workers=config.data.workers).scores()


def _record_noise(data: DataSplits, path: Path) -> None:
    assert data.true_labels is not None
    wrong = np.flatnonzero(data.train.labels != data.true_labels)
    rows = [
        {
            "row": int(r),
            "path": str(data.train.paths[r]),
            "true_label": int(data.true_labels[r]),
            "label": int(data.train.labels[r]),
        }
        for r in wrong
    ]
    write_csv(path, rows)


def _save_model(model: EmbeddingModel, folder: Path, preprocessing: Preprocessing) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    save_transforms(temporary, preprocessing)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before its scores were written
    temporary.replace(folder)
