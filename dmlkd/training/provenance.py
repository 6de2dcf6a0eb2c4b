"""Where a run's figures come from: the code, the command, the machine and the data, kept beside them."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import dmlkd
from dmlkd.errors import DataError
from dmlkd.files import write_json
from dmlkd.training.processes import Processes

_RECORDED = ("torch", "torchvision", "pytorch-metric-learning", "faiss-cpu", "lightning", "numpy")


def versions() -> dict[str, str]:
    """The versions of this package and of what its figures hang on."""
    return {"dmlkd": dmlkd.__version__, **{name: version(name) for name in _RECORDED}}


def record(folder: Path, counts: dict[str, Any]) -> None:
    """Write ``run.json``, or add this process to it where it resumes a run.

    Args:
        folder: of the run.
        counts: of the data.

    Raises:
        DataError: if the run was begun with other data.
    """
    path = folder / "run.json"
    new: dict[str, Any] = {"data": counts, "processes": []}
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else new
    if recorded["data"] != counts:
        raise DataError(f"{folder} was begun with other images: {recorded['data']}, there are now {counts}")
    recorded["processes"].append(_this_process())
    write_json(path, recorded)


def _this_process() -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "revision": _revision(),
        "versions": versions(),
        "python": platform.python_version(),
        "host": platform.node(),
        "platform": platform.platform(),
        "together": Processes.now().size,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _revision() -> str | None:
    """The git revision of this package, "-dirty" behind it if files are changed; None: it is in no checkout."""
    git, package = shutil.which("git"), Path(__file__).parents[1]
    if git is None:
        return None

    def answer(*words: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603  (nothing in it comes from outside)
                [git, "-C", str(package), *words], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if answer("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return answer("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
