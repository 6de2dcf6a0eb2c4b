"""Where a saved model is: a folder, a run folder, or a name on the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError

from dmlkd.errors import UserError

_FILES = ("config.json", "model.safetensors")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def model_folder(source: str | Path, **hub: Any) -> Path:
    """The folder of a saved model; that of a name on the hub is fetched, without anything that could be executed.

    Args:
        source: a folder that ``save_pretrained`` wrote, a finished run's folder, or a name such as "owner/model".
        hub: arguments of :func:`huggingface_hub.snapshot_download`.

    Raises:
        UserError: if there is no such thing, or a file is missing in it.
    """
    folder = Path(source)
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
