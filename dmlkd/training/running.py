"""A run from a configuration: train, measure on unseen classes beside the baselines, write the run folder."""

import errno
import shlex
import shutil
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
from dmlkd.models import EmbeddingModel, fingerprint
from dmlkd.retrieval import Scores
from dmlkd.training.building import Parts, build
from dmlkd.training.building_data import build_preprocessing
from dmlkd.training.fitting import FitResult, fit
from dmlkd.training.folder import LOCK, held_by_first, sweep
from dmlkd.training.measuring import embed_test
from dmlkd.training.processes import Processes, together
from dmlkd.training.provenance import record, versions
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


def run(config: RunConfig, out: Path) -> RunResult:
    """Train as configured and write a run folder: see docs/run-folder.md.

    Where torchrun or ``srun`` has started several processes, all of them call this and train together: see
    docs/distributed.md. All get the result, the first writes.

    Two calls with the same configuration on the same machine give the same ``metrics.json``.

    Args:
        config: from :func:`dmlkd.config.load_config`.
        out: the run folder; must be new or empty.

    Raises:
        ConfigError: if the parts do not fit together.
        DataError: if the images are not there, incomplete or too few.
        TrainingError: if a loss or a weight is not finite, or a checkpoint cannot be written.
        UserError: if the folder is taken, in use, or cannot be written.
        Interrupted: if SIGINT or SIGTERM came; :func:`resume` goes on from there.
    """

    def begin() -> None:
        _check_free(out)
        write_text(out / "config.yaml", config.to_yaml())

    with together() as processes:
        processes.from_first(lambda: _check_free(out))
        parts = _seeded_parts(config)
        with held_by_first(out):
            processes.from_first(begin)
            return _interruptible(config, parts, out)


def resume(folder: Path) -> RunResult:
    """Go on with a run that was stopped or killed, from its last checkpoint.

    On the CPU it ends with the same bits in ``metrics.json``, ``log.csv`` and ``model/`` as if it had not been stopped.

    Args:
        folder: of the run, as :func:`run` left it at whatever moment.

    Raises:
        UserError: if there is no run, it is finished, or another process is at work on it; and as :func:`run`.
    """

    def begin() -> None:
        if (folder / "metrics.json").is_file():
            raise UserError(f"{folder} is finished; measure it again with dmlkd eval --run {folder}")
        sweep(folder)

    with together() as processes:
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder} is no run folder: it has no config.yaml")
        with held_by_first(folder):
            processes.from_first(begin)
            config, source = load_config(folder / "config.yaml")
            try:
                parts = _seeded_parts(config)
            except ConfigError as error:
                raise source.located(error) from None
            return _interruptible(config, parts, folder, resumed=True)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise UserError(f"{out} is already there and not an empty folder; choose another run folder")


def _seeded_parts(config: RunConfig) -> Parts:
    lightning.seed_everything(config.train.seed, workers=True, verbose=False)
    parts = build(config)
    processes = Processes.now()
    processes.check_same("images", parts.data.counts())
    processes.check_same("a network", fingerprint(parts.model))
    return parts


def _interruptible(config: RunConfig, parts: Parts, out: Path, *, resumed: bool = False) -> RunResult:
    stop = Stop(Processes.now().largest)
    again = f"dmlkd train --resume {shlex.quote(str(out))}"
    try:
        with stop.listening():
            return _run(config, parts, out, stop, resumed=resumed)
    except Interrupted as stopped:
        raise Interrupted(stopped.signum, f"go on with: {again}") from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise TrainingError(f"{out} cannot be written: {error.strerror}; make room, then: {again}") from error


def _run(config: RunConfig, parts: Parts, out: Path, stop: Stop, *, resumed: bool) -> RunResult:
    processes = Processes.now()
    processes.from_first(lambda: _record(parts.data, out))
    model, test = parts.model, parts.data.test
    baselines = {"pixels": _scores(nn.Flatten(), test, config), "untrained": _scores(model, test, config)}
    result = fit(
        model,
        parts.objective,
        parts.data,
        config.train,
        out=out,
        sampler=parts.sampler,
        workers=config.data.workers,
        resume=resumed,
        stop=stop,
    )
    stop.now()
    by_epoch = {"last": _scores(model, test, config)}
    reported = "last"
    if result.best_epoch is not None:
        reported = "best"
        if result.best_epoch == result.last_epoch:
            by_epoch["best"] = by_epoch["last"]
        else:
            result.load_best(model)
            by_epoch["best"] = _scores(model, test, config)
    row = result.history[result.last_epoch if result.best_epoch is None else result.best_epoch]
    metrics = {
        "test": dict(by_epoch[reported]),
        "val": {name.removeprefix("val/"): value for name, value in row.items() if name.startswith("val/")},
        "epoch": {"last": result.last_epoch, "best": result.best_epoch, "reported": reported},
        "test_by_epoch": {name: dict(scores) for name, scores in by_epoch.items()},
        "baselines": {name: dict(scores) for name, scores in baselines.items()},
        "data": {**parts.data.counts(), "test_queries_left_out": by_epoch[reported].left_out},
        "seed": config.train.seed,
        "versions": versions(),
    }
    processes.from_first(lambda: _write_results(config, model, metrics, out))
    return RunResult(out, metrics, result)


def _record(data: DataSplits, out: Path) -> None:
    record(out, data.counts())
    if data.skipped:
        write_csv(out / "skipped.csv", [bad._asdict() for bad in data.skipped])
    if data.true_labels is not None:
        _record_noise(data, out / "label_noise.csv")


def _write_results(config: RunConfig, model: EmbeddingModel, metrics: dict[str, Any], out: Path) -> None:
    _save_model(model, out / "model", build_preprocessing(config.data))
    write_text(out / "model" / "README.md", model_card(model, metrics, config.to_yaml()))
    write_json(out / "metrics.json", metrics)


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
