"""Reading a saved model."""

from pathlib import Path

from safetensors import SafetensorError

from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel


def load_model(folder: Path) -> EmbeddingModel:
    """Read a model folder written by ``save_pretrained``.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.

    Raises:
        UserError: if one of them is missing or cannot be read.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no saved model: it has no {name}")
    try:
        return EmbeddingModel.from_pretrained(folder)
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder} cannot be read as a model: {' '.join(str(error).split())}") from None
