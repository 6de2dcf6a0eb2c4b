"""Self-distillation: four choices a method (teacher, target, comparison, weight), each usable in anybody's own loop.

Imports torch alone: neither Lightning nor FAISS nor the trainer.
"""

from dmlkd.distill.functional import listwise_kl
from dmlkd.distill.lsd import ListwiseSelfDistillation
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.schedules import Constant, Cosine, LinearRamp, Schedule, WarmUp
from dmlkd.distill.teachers import (
    FrozenTeacher,
    MovingAverageTeacher,
    PreviousEpochTeacher,
    SnapshotTeacher,
    Teacher,
)

__all__ = [
    "Constant",
    "Cosine",
    "DistillationMethod",
    "FrozenTeacher",
    "LinearRamp",
    "ListwiseSelfDistillation",
    "MovingAverageTeacher",
    "PreviousEpochTeacher",
    "Schedule",
    "SnapshotTeacher",
    "Teacher",
    "WarmUp",
    "listwise_kl",
]
