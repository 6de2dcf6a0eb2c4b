"""Metric learning with self-distilled embeddings.

The public names below are loaded on first use, so that ``import dmlkd`` and ``dmlkd --help`` pay for neither torch,
Lightning nor FAISS.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_PUBLIC = {
    "EmbeddingModel": "dmlkd.models",
    "Objective": "dmlkd.training",
    "SelfDistilled": "dmlkd.training",
    "Signals": "dmlkd.signals",
    "Batch": "dmlkd.signals",
    "UserError": "dmlkd.errors",
    "embed": "dmlkd.export",
    "evaluate": "dmlkd.retrieval",
    "fit": "dmlkd.training",
}

__all__ = [
    "Batch",
    "EmbeddingModel",
    "Objective",
    "SelfDistilled",
    "Signals",
    "UserError",
    "__version__",
    "embed",
    "evaluate",
    "fit",
]

if TYPE_CHECKING:
    from dmlkd.errors import UserError
    from dmlkd.export import embed
    from dmlkd.models import EmbeddingModel
    from dmlkd.retrieval import evaluate
    from dmlkd.signals import Batch, Signals
    from dmlkd.training import Objective, SelfDistilled, fit


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dmlkd' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
