"""Training: the objective (torch alone), and the Lightning module, ``fit`` and run folders, loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dmlkd.training.drop_in import SelfDistilled
from dmlkd.training.objective import Losses, Objective, Term

__all__ = [
    "EmbeddingData",
    "EmbeddingModule",
    "FitResult",
    "Losses",
    "Objective",
    "SelfDistilled",
    "Term",
    "fit",
    "resume",
    "resume_plan",
    "run",
    "run_plan",
]

_NEED_LIGHTNING = {
    "EmbeddingData": "dmlkd.training.loaders",
    "EmbeddingModule": "dmlkd.training.module",
    "FitResult": "dmlkd.training.fitting",
    "fit": "dmlkd.training.fitting",
    "resume": "dmlkd.training.running",
    "resume_plan": "dmlkd.training.plans",
    "run": "dmlkd.training.running",
    "run_plan": "dmlkd.training.plans",
}

if TYPE_CHECKING:
    from dmlkd.training.fitting import FitResult, fit
    from dmlkd.training.loaders import EmbeddingData
    from dmlkd.training.module import EmbeddingModule
    from dmlkd.training.plans import resume_plan, run_plan
    from dmlkd.training.running import resume, run


def __getattr__(name: str) -> Any:
    if name not in _NEED_LIGHTNING:
        raise AttributeError(f"module 'dmlkd.training' has no attribute {name!r}")
    return getattr(import_module(_NEED_LIGHTNING[name]), name)
