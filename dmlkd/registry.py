"""Names that a configuration may use. Literal dictionaries: nothing else can be imported or called from a YAML file."""

from dataclasses import dataclass
from importlib import import_module
from inspect import isclass
from typing import Any

from dmlkd.errors import ConfigError, suggestion


@dataclass(frozen=True)
class DataEntry:
    """A reader, and what suits its images unless the configuration says otherwise."""

    reader: str
    image_size: int
    channels: int
    transform: str


@dataclass(frozen=True)
class MethodEntry:
    """A self-distillation method, the teacher and schedule of its paper, whether it reads class scores, and exits."""

    method: str
    teacher: str | None
    schedule: str
    classes: bool = False
    exits: bool = False


DATA = {
    "cars196": DataEntry("dmlkd.data:cars196", image_size=224, channels=3, transform="published"),
    "cub200": DataEntry("dmlkd.data:cub200", image_size=224, channels=3, transform="published"),
    "digits": DataEntry("dmlkd.data:digits", image_size=8, channels=1, transform="plain"),
    "folder": DataEntry("dmlkd.data:image_folder", image_size=224, channels=3, transform="published"),
    "inshop": DataEntry("dmlkd.data:inshop", image_size=224, channels=3, transform="published"),
    "omniglot": DataEntry("dmlkd.data:omniglot", image_size=28, channels=1, transform="handwriting"),
    "omniglot-small": DataEntry("dmlkd.data:omniglot_small", image_size=28, channels=1, transform="handwriting"),
    "sop": DataEntry("dmlkd.data:sop", image_size=224, channels=3, transform="published"),
    "table": DataEntry("dmlkd.data:table_file", image_size=224, channels=3, transform="published"),
}

TRANSFORMS = {
    "bicubic": "dmlkd.data.transforms:bicubic",
    "color_jitter": "dmlkd.data.transforms:color_jitter",
    "contrastive": "dmlkd.data.transforms:contrastive",
    "handwriting": "dmlkd.data.transforms:handwriting",
    "modern": "dmlkd.data.transforms:modern",
    "plain": "dmlkd.data.transforms:plain",
    "published": "dmlkd.data.transforms:published",
    "rand_augment": "dmlkd.data.transforms:rand_augment",
    "random_erasing": "dmlkd.data.transforms:random_erasing",
}

METHODS = {
    "corrected": MethodEntry(
        "dmlkd.distill:CorrectedDistillation", teacher="previous_epoch", schedule="constant", classes=True
    ),
    "beta_smoothing": MethodEntry(
        "dmlkd.distill:BetaSmoothing", teacher="moving_average", schedule="constant", classes=True
    ),
    "bsd": MethodEntry("dmlkd.distill:bsd", teacher="evidence", schedule="constant", classes=True),
    "adaptive_labels": MethodEntry("dmlkd.distill:AdaptiveLabels", teacher=None, schedule="constant", classes=True),
    "adversary": MethodEntry("dmlkd.distill:Adversary", teacher="finished_run", schedule="constant", classes=True),
    "ambiguity": MethodEntry(
        "dmlkd.distill:AmbiguityDistillation", teacher="lower_exit", schedule="after", classes=True
    ),
    "byot": MethodEntry("dmlkd.distill:ExitDistillation", teacher=None, schedule="constant", exits=True),
    "byot_posterior": MethodEntry(
        "dmlkd.distill:PosteriorExitDistillation", teacher=None, schedule="constant", classes=True, exits=True
    ),
    "cross_entropy": MethodEntry("dmlkd.distill:CrossEntropy", teacher=None, schedule="constant", classes=True),
    "cs_kd": MethodEntry("dmlkd.distill:PosteriorDistillation", teacher="partner", schedule="constant", classes=True),
    "discriminative": MethodEntry(
        "dmlkd.distill:DiscriminativeDistillation", teacher="finished_run", schedule="constant", classes=True
    ),
    "embedding": MethodEntry("dmlkd.distill:EmbeddingDistillation", teacher="finished_run", schedule="constant"),
    "kddg": MethodEntry(
        "dmlkd.distill:GradientFilteredDistillation", teacher="finished_run", schedule="constant", classes=True
    ),
    "dynamic_smoothing": MethodEntry("dmlkd.distill:DynamicSmoothing", teacher=None, schedule="constant", classes=True),
    "label_mixing": MethodEntry("dmlkd.distill:LabelMixing", teacher="finished_run", schedule="constant", classes=True),
    "lsd": MethodEntry("dmlkd.distill:ListwiseSelfDistillation", teacher="previous_epoch", schedule="linear_ramp"),
    "margin_relu": MethodEntry("dmlkd.distill:MarginReLU", teacher="finished_run", schedule="constant"),
    "moco": MethodEntry("dmlkd.distill:MomentumContrast", teacher="moving_average", schedule="constant"),
    "obd_sd": MethodEntry("dmlkd.distill:OnlineBatchDiffusion", teacher="previous_epoch", schedule="linear_ramp"),
    "posterior": MethodEntry(
        "dmlkd.distill:PosteriorDistillation", teacher="previous_epoch", schedule="constant", classes=True
    ),
    "ps_kd": MethodEntry("dmlkd.distill:ps_kd", teacher="remembered_posterior", schedule="constant", classes=True),
    "s2sd": MethodEntry("dmlkd.distill:ListwiseSelfDistillation", teacher="wider_heads", schedule="constant"),
    "sd_dropout": MethodEntry("dmlkd.distill:SelfDistillationDropout", teacher=None, schedule="constant", classes=True),
    "sfr": MethodEntry("dmlkd.distill:SelfFeatureRegularization", teacher=None, schedule="constant"),
    "skd": MethodEntry("dmlkd.distill:skd", teacher="class_geometry", schedule="constant", classes=True),
    "sril": MethodEntry(
        "dmlkd.distill:SelectiveRegularization", teacher="finished_run", schedule="constant", classes=True
    ),
    "subclass": MethodEntry(
        "dmlkd.distill:SubclassDistillation", teacher="finished_run", schedule="constant", classes=True
    ),
    "subclass_spread": MethodEntry("dmlkd.distill:SubclassSpread", teacher=None, schedule="constant", classes=True),
}

TEACHERS = {
    "evidence": "dmlkd.distill:EvidenceTeacher",
    "class_geometry": "dmlkd.distill:ClassGeometryTeacher",
    "finished_run": "dmlkd.training.teachers:finished_run",
    "lower_exit": "dmlkd.distill:LowerExitTeacher",
    "moving_average": "dmlkd.distill:MovingAverageTeacher",
    "out_of_fold": "dmlkd.training.teachers:out_of_fold",
    "partner": "dmlkd.distill:PartnerTeacher",
    "previous_epoch": "dmlkd.distill:PreviousEpochTeacher",
    "remembered": "dmlkd.distill:RememberedTeacher",
    "remembered_posterior": "dmlkd.distill:RememberedPosteriorTeacher",
    "snapshot": "dmlkd.distill:SnapshotTeacher",
    "wider_heads": "dmlkd.distill:WiderHeadsTeacher",
}

SCHEDULES = {
    "after": "dmlkd.distill:After",
    "constant": "dmlkd.distill:Constant",
    "cosine": "dmlkd.distill:Cosine",
    "linear_ramp": "dmlkd.distill:LinearRamp",
    "warm_up": "dmlkd.distill:WarmUp",
}

# Arguments of methods that are schedules, given by name as a term's own is.
METHOD_SCHEDULES = frozenset({"growth"})

# Arguments of pytorch-metric-learning's classes that are objects of its own, and the module their classes are in.
PML_PARTS = {
    "distance": "distances",
    "embedding_regularizer": "regularizers",
    "loss": "losses",
    "miner": "miners",
    "reducer": "reducers",
    "weight_regularizer": "regularizers",
}

# Classes of pytorch-metric-learning that we mend.
_OURS = {("losses", "CrossBatchMemory"): "dmlkd.training.cross_batch:CrossBatchMemory"}

# Base classes, and wrappers that take losses as arguments.
_NOT_BY_NAME = frozenset(
    {
        "BaseLossWrapper",
        "BaseMetricLossFunction",
        "BaseMiner",
        "BaseDistance",
        "BaseReducer",
        "BaseRegularizer",
        "EmbeddingRegularizerMixin",
        "GenericPairLoss",
        "MultipleLosses",
        "SelfSupervisedLoss",
        "WeightRegularizerMixin",
    }
)


def lookup(table: dict[str, Any], what: str, name: str, path: tuple[str | int, ...]) -> Any:
    """The entry of a table; one that is an import path is imported.

    Raises:
        ConfigError: for a name that is not in the table.
    """
    if name not in table:
        raise ConfigError(f"unknown {what} {name!r}{suggestion(name, table)}", path)
    entry = table[name]
    return load(entry) if isinstance(entry, str) else entry


def load(target: str) -> Any:
    """Import ``"module:attribute"``; for the literal values of this file only."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def metric_learning_class(kind: str, name: str, path: tuple[str | int, ...]) -> type:
    """A class of pytorch-metric-learning.

    Args:
        kind: the module it is in: "losses", "miners", "distances", "reducers" or "regularizers".
        name: of the class.
        path: where the name stands in the configuration.

    Raises:
        ConfigError: for a name that is not there, or stands for a base class or a wrapper.
    """
    if (kind, name) in _OURS:
        return load(_OURS[kind, name])  # type: ignore[no-any-return]
    module = import_module(f"pytorch_metric_learning.{kind}")
    classes = {n: c for n, c in vars(module).items() if isclass(c) and n not in _NOT_BY_NAME}
    return lookup(classes, f"class of pytorch_metric_learning.{kind}", name, path)  # type: ignore[no-any-return]
