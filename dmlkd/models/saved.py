"""Where a saved model is: a folder, a run folder, or a name on the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError

from dmlkd.errors import UserError

_FILES = ("config.json", "model.safetensors")
PLAN = "plan.yaml"
"""File that makes a folder that of a plan."""

FITS = "fits"
"""Folder of a plan's run folders, one a fit."""

_FIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def model_folder(source: str | Path, **hub: Any) -> Path:
    """The folder of a saved model; that of a name on the hub is fetched, without anything that could be executed.

    Args:
        source: a folder that ``save_pretrained`` wrote, the folder of a finished run or plan, or a name such as
            "owner/model".
        hub: arguments of :func:`huggingface_hub.snapshot_download`.

    Raises:
        UserError: if there is no such thing, or a file is missing in it.
    """
    folder = run_folder(Path(source))
    if (folder / "model").is_dir():
        folder = folder / "model"
    if not folder.is_dir():
        if isinstance(source, Path) or not _HUB_NAME.fullmatch(source):
            raise UserError(f"model folder {source} does not exist")
        folder = _fetched(source, hub)
    for name in _FILES:
        if not (folder / name).is_file():
            raise UserError(f"{source} is no saved model: it has no {name}")
    return folder


def run_folder(folder: Path) -> Path:
    """The folder of a run; of a plan, that of its last fit.

    Args:
        folder: of whatever kind; one that is no plan's is given back.

    Raises:
        UserError: if it has a ``plan.yaml`` that says nothing of fits.
    """
    if not (folder / PLAN).is_file():
        return folder
    try:
        values = yaml.safe_load((folder / PLAN).read_text(encoding="utf-8"))
        name = values["plan"][-1]["name"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, ValueError, RecursionError):
        raise UserError(f"{folder / PLAN} does not say which fits the plan has") from None
    return folder / FITS / fit_name(name)


def fit_name(name: object) -> str:
    """The name of a fit, which is that of its folder.

    Raises:
        UserError: unless it is one word of letters, digits, "_", "." and "-" that begins with a letter or a digit.
    """
    if not isinstance(name, str) or not _FIT_NAME.fullmatch(name):
        raise UserError(
            f"a fit's name must be of letters, digits, '_', '.' and '-', and no longer than 100, got {name!r}"
        )
    return name


def _fetched(name: str, hub: dict[str, Any]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "README.md"], **hub))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{name} is no folder here, and no model of the hub that can be read: {reason}") from None


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Say in one line that a folder cannot be read as a model.

    Raises:
        UserError: in place of what reading raises.
    """
    try:
        yield
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder} cannot be read as a model: {' '.join(str(error).split())}") from None
