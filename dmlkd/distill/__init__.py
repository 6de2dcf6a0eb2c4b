"""Self-distillation: four choices a method (teacher, target, comparison, weight), each usable in anybody's own loop.

Imports torch alone: neither Lightning nor FAISS nor the trainer.
"""

from dmlkd.distill.ambiguity import AmbiguityDistillation, recalibrated_logits
from dmlkd.distill.diffusion import OnlineBatchDiffusion, diffused_lists
from dmlkd.distill.functional import divergence_from_lists, listwise_divergence
from dmlkd.distill.heads import WiderHeadsTeacher
from dmlkd.distill.kddg import GradientFilteredDistillation
from dmlkd.distill.lower_exit import LowerExitTeacher
from dmlkd.distill.lsd import ListwiseSelfDistillation
from dmlkd.distill.memory import RememberedTeacher, RowMemory
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.partner import PartnerTeacher
from dmlkd.distill.posteriors import (
    CrossEntropy,
    LabelMixing,
    PosteriorDistillation,
    mixed_cross_entropy,
    posterior_divergence,
)
from dmlkd.distill.schedules import After, Constant, Cosine, LinearRamp, Schedule, WarmUp
from dmlkd.distill.subclasses import SubclassDistillation, SubclassSpread, subclass_spread
from dmlkd.distill.teachers import (
    FrozenTeacher,
    Lesson,
    MovingAverageTeacher,
    PreviousEpochTeacher,
    SnapshotTeacher,
    Teacher,
)

__all__ = [
    "After",
    "AmbiguityDistillation",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "DistillationMethod",
    "FrozenTeacher",
    "GradientFilteredDistillation",
    "LabelMixing",
    "Lesson",
    "LinearRamp",
    "ListwiseSelfDistillation",
    "LowerExitTeacher",
    "MovingAverageTeacher",
    "OnlineBatchDiffusion",
    "PartnerTeacher",
    "PosteriorDistillation",
    "PreviousEpochTeacher",
    "RememberedTeacher",
    "RowMemory",
    "Schedule",
    "SnapshotTeacher",
    "SubclassDistillation",
    "SubclassSpread",
    "Teacher",
    "WarmUp",
    "WiderHeadsTeacher",
    "diffused_lists",
    "divergence_from_lists",
    "listwise_divergence",
    "mixed_cross_entropy",
    "posterior_divergence",
    "recalibrated_logits",
    "subclass_spread",
]
