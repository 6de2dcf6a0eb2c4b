"""Self-distillation: four choices a method (teacher, target, comparison, weight), each usable in anybody's own loop.

Imports torch alone: neither Lightning nor FAISS nor the trainer.
"""

from dmlkd.distill.cross_fitting import OutOfFoldTeacher
from dmlkd.distill.diffusion import OnlineBatchDiffusion, diffused_lists
from dmlkd.distill.functional import divergence_from_lists, listwise_divergence
from dmlkd.distill.heads import WiderHeadsTeacher
from dmlkd.distill.lsd import ListwiseSelfDistillation
from dmlkd.distill.memory import RememberedTeacher, RowMemory
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.schedules import Constant, Cosine, LinearRamp, Schedule, WarmUp
from dmlkd.distill.teachers import (
    FrozenTeacher,
    Lesson,
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
    "Lesson",
    "LinearRamp",
    "ListwiseSelfDistillation",
    "MovingAverageTeacher",
    "OnlineBatchDiffusion",
    "OutOfFoldTeacher",
    "PreviousEpochTeacher",
    "RememberedTeacher",
    "RowMemory",
    "Schedule",
    "SnapshotTeacher",
    "Teacher",
    "WarmUp",
    "WiderHeadsTeacher",
    "diffused_lists",
    "divergence_from_lists",
    "listwise_divergence",
]
