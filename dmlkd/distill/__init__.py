"""Self-distillation: four choices a method (teacher, target, comparison, weight), each usable in anybody's own loop.

Imports torch alone: neither Lightning nor FAISS nor the trainer.
"""

from dmlkd.distill.adaptive_labels import AdaptiveLabels, ResidualLosses, residual_divergence
from dmlkd.distill.adversary import Adversary, AdversaryLosses, adversarial_losses
from dmlkd.distill.ambiguity import AmbiguityDistillation, recalibrated_logits
from dmlkd.distill.beta_smoothing import BetaSmoothing, ranked_beta, smoothed_cross_entropy
from dmlkd.distill.corrected import CorrectedDistillation
from dmlkd.distill.cross_fitting import OutOfFoldTeacher
from dmlkd.distill.diffusion import OnlineBatchDiffusion, diffused_lists
from dmlkd.distill.discriminative import DiscriminativeDistillation
from dmlkd.distill.dropout import SelfDistillationDropout, mutual_divergence
from dmlkd.distill.dynamic_smoothing import DynamicSmoothing
from dmlkd.distill.embedding import EmbeddingDistillation, embedding_distance
from dmlkd.distill.evidence import EvidenceTeacher, bsd, updated_means
from dmlkd.distill.functional import divergence_from_lists, listwise_divergence
from dmlkd.distill.geometry import ClassGeometryTeacher, neighbour_logits, skd
from dmlkd.distill.heads import WiderHeadsTeacher
from dmlkd.distill.kddg import GradientFilteredDistillation
from dmlkd.distill.lower_exit import LowerExitTeacher
from dmlkd.distill.lsd import ListwiseSelfDistillation
from dmlkd.distill.margin_relu import MarginReLU, margin_relu_loss, negative_part
from dmlkd.distill.memory import RememberedTeacher, RowMemory
from dmlkd.distill.method import DistillationMethod
from dmlkd.distill.moco import MomentumContrast, margin_contrast
from dmlkd.distill.own_teacher import ExitDistillation, PosteriorExitDistillation, hint_loss
from dmlkd.distill.partner import PartnerTeacher
from dmlkd.distill.posterior_memory import PosteriorMemory
from dmlkd.distill.posteriors import (
    CrossEntropy,
    LabelledPosteriors,
    LabelMixing,
    PosteriorDistillation,
    mixed_cross_entropy,
    posterior_divergence,
)
from dmlkd.distill.remembered_posterior import RememberedPosteriorTeacher, ps_kd
from dmlkd.distill.schedules import After, Constant, Cosine, LinearRamp, Schedule, WarmUp
from dmlkd.distill.sfr import SelfFeatureRegularization, local_descriptors, transport_cost
from dmlkd.distill.sril import SelectiveRegularization, agreeing, interpolate
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
    "AdaptiveLabels",
    "Adversary",
    "AdversaryLosses",
    "After",
    "AmbiguityDistillation",
    "BetaSmoothing",
    "ClassGeometryTeacher",
    "Constant",
    "CorrectedDistillation",
    "Cosine",
    "CrossEntropy",
    "DiscriminativeDistillation",
    "DistillationMethod",
    "DynamicSmoothing",
    "EmbeddingDistillation",
    "EvidenceTeacher",
    "ExitDistillation",
    "FrozenTeacher",
    "GradientFilteredDistillation",
    "LabelMixing",
    "LabelledPosteriors",
    "Lesson",
    "LinearRamp",
    "ListwiseSelfDistillation",
    "LowerExitTeacher",
    "MarginReLU",
    "MomentumContrast",
    "MovingAverageTeacher",
    "OnlineBatchDiffusion",
    "OutOfFoldTeacher",
    "PartnerTeacher",
    "PosteriorDistillation",
    "PosteriorExitDistillation",
    "PosteriorMemory",
    "PreviousEpochTeacher",
    "RememberedPosteriorTeacher",
    "RememberedTeacher",
    "ResidualLosses",
    "RowMemory",
    "Schedule",
    "SelectiveRegularization",
    "SelfDistillationDropout",
    "SelfFeatureRegularization",
    "SnapshotTeacher",
    "SubclassDistillation",
    "SubclassSpread",
    "Teacher",
    "WarmUp",
    "WiderHeadsTeacher",
    "adversarial_losses",
    "agreeing",
    "bsd",
    "diffused_lists",
    "divergence_from_lists",
    "embedding_distance",
    "hint_loss",
    "interpolate",
    "listwise_divergence",
    "local_descriptors",
    "margin_contrast",
    "margin_relu_loss",
    "mixed_cross_entropy",
    "mutual_divergence",
    "negative_part",
    "neighbour_logits",
    "posterior_divergence",
    "ps_kd",
    "ranked_beta",
    "recalibrated_logits",
    "residual_divergence",
    "skd",
    "smoothed_cross_entropy",
    "subclass_spread",
    "transport_cost",
    "updated_means",
]
