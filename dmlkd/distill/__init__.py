"""Self-distillation: four choices a method (teacher, target, comparison, weight), each usable in anybody's own loop.

Imports torch alone: neither Lightning nor FAISS nor the trainer.
"""

from dmlkd.distill.functional import listwise_kl
from dmlkd.distill.lsd import ListwiseSelfDistillation
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.schedules import Constant, LinearRamp, Schedule
from dmlkd.distill.teachers import PreviousEpochTeacher, Teacher

__all__ = [
    "Constant",
    "DistillationMethod",
    "LinearRamp",
    "ListwiseSelfDistillation",
    "PreviousEpochTeacher",
    "Schedule",
    "Teacher",
    "listwise_kl",
]
