"""The sections of a configuration file, as frozen models that refuse unknown keys."""

from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dmlkd.data import NoiseKind


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(BaseModel):
    """Something chosen by name, with its arguments beside the name; a bare name stands for one without arguments."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What stands beside the declared keys."""
        return dict(self.model_extra or {})


def named(value: object) -> object:
    """A bare name as the mapping it stands for."""
    return {"name": value} if isinstance(value, str) else value


NamedPart = Annotated[Part, BeforeValidator(named)]


_PREPARING = frozenset({"channels", "crop", "image_size", "shorter", "transform"})


class ReplayConfig(_Section):
    """``data.replay``: images of an earlier fit's classes that are trained on again."""

    fit: str = Field(description="the earlier fit of the same plan, whose classes and model they are chosen by")
    images: int = Field(ge=1, description="of all its classes together, as many of each")
    nearest: int | None = Field(
        default=None,
        ge=1,
        description="only of so many of its classes, the nearest to each class of the task; None: of all",
    )


class DataConfig(Part):
    """``data``: a reader by name, its arguments, and how its images are prepared."""

    image_size: int | None = Field(default=None, ge=1, description="pixels a side of what the network sees")
    channels: Literal[1, 3] | None = None
    transform: str | None = None
    validation: float = Field(default=0.15, ge=0, lt=1, description="share of the training classes held out")
    noise: float = Field(default=0.0, ge=0, lt=1, description="share of the training labels made wrong")
    noise_kind: NoiseKind = "symmetric"
    workers: int = Field(default=0, ge=0)
    in_memory: bool = Field(default=False, description="decode every image once and keep it")
    cache: str | None = Field(default=None, description="folder where images are kept decoded, for later runs too")
    on_device: bool = Field(default=False, description="transform training batches whole, on the device")
    shorter: int | None = Field(default=None, ge=1, description="pixels of the shorter side, before the transform")
    crop: bool = Field(default=False, description="cut out the images' boxes")
    corrupt: Literal["error", "skip"] = Field(default="error", description="what to do with images that cannot be read")
    folds: int | None = Field(default=None, ge=2, description="hold out one of so many shares of the classes instead")
    fold: int = Field(default=0, ge=0, description="which of them")
    test_domain: str | None = Field(default=None, description="test on this domain, train on all others")
    held_out_images: float = Field(
        default=0.0, ge=0, lt=1, description="share of each training class's images that class scores are measured on"
    )
    image_folds: int | None = Field(default=None, ge=2, description="cut the training images into so many folds")
    image_fold: int | None = Field(default=None, ge=0, description="train on all of them but this; None: on all")
    tasks: int | None = Field(default=None, ge=2, description="deal the training classes out to so many tasks")
    task: int | None = Field(default=None, ge=0, description="train on the classes of this one; None: on all")
    replay: ReplayConfig | None = Field(default=None, description="and on a few images of an earlier fit's classes")
    test_share: float | None = Field(
        default=None, gt=0, lt=1, description="test on this share of each class's images, train on the others"
    )
    superclasses: dict[str, tuple[str | int, ...]] | None = Field(
        default=None, description="train on these, each a list of classes; validation and test keep the classes"
    )
    seen_classes: bool = Field(default=False, description="allow classes of training in the test")

    @property
    def preparing(self) -> tuple[str, ...]:
        """The keys that were given and say how images are prepared."""
        return tuple(sorted(_PREPARING & self.model_fields_set))


class TermConfig(Part):
    """``distill.N``: a method by name, its arguments, and the other three axes."""

    weight: float = Field(ge=0, allow_inf_nan=False)
    teacher: NamedPart | None = None
    schedule: NamedPart | None = None


class ClassesConfig(_Section):
    """``classes``: the auxiliary head that gives class scores where the metric loss has no class weights."""

    scale: float = Field(default=16.0, gt=0, allow_inf_nan=False, description="factor on cosines before the softmax")
    subclasses: int = Field(default=1, ge=1, description="of each class, for subclass distillation")
    weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="of its cross-entropy, where no term trains it"
    )


class ExitsConfig(_Section):
    """``exits``: where the backbone can be left, for a method that trains exits."""

    stages: tuple[int, ...] | None = Field(default=None, description="after which; None: all inner ones but a stem")
    width: int | None = Field(default=None, ge=1, description="channels within; None: as suits the stage")


class TrainConfig(_Section):
    """``train``: how long, how fast and with what batches."""

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=112, ge=1)
    per_class: int = Field(default=4, ge=1)
    sampler: Literal["without_replacement", "published", "shuffled"] = Field(
        default="without_replacement",
        description="published: classes and images of a batch are drawn with replacement; shuffled: each image once "
        "an epoch, whatever its label",
    )
    views: int = Field(
        default=1, ge=1, description="of the sampler shuffled: times that an image comes in its batch, transformed anew"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    trunk_lr: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="of the backbone; None: lr")
    metric_loss_lr: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="of the metric loss's own weights; None: lr"
    )
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    lr_step_epochs: int | None = Field(default=None, ge=1, description="of the step schedule: epochs between two steps")
    lr_step_factor: float = Field(default=0.1, gt=0, le=1, description="of the step schedule: factor at each step")
    head_only_epochs: int = Field(default=0, ge=0, description="first so many epochs leave the backbone as it is")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = Field(default=False, description="keep feature maps with their channels last in memory")
    compile: bool = Field(default=False, description="compile the backbones, student's and teachers', on first use")
    chunk_size: int | None = Field(
        default=None, ge=1, description="images that are in memory at a time; None: the batch"
    )
    checkpoint_trunk: bool = Field(
        default=False, description="compute the backbone's stages again in the backward pass instead of keeping them"
    )
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="validate, test and save the moving average of the weights, of this decay"
    )
    early_stop_epochs: int | None = Field(
        default=None, ge=1, description="end after so many epochs without a new best on the validation classes"
    )
    skip_non_finite: int = Field(
        default=0, ge=0, description="pass over so many steps with a loss or gradient that is not finite"
    )
    sync_batch_norm: bool = Field(
        default=False, description="batch norm over the images of all processes; otherwise each over its own"
    )
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    deterministic: bool = Field(default=False, description="take only algorithms that give the same bits every time")
    wandb: str | None = Field(default=None, min_length=1, description="log to this project of Weights & Biases too")
    seed: int = Field(default=0, ge=0, lt=2**32)
    checkpoint_every_steps: int | None = Field(
        default=None, ge=1, description="write a checkpoint within an epoch too, after so many of its steps"
    )


class StartConfig(_Section):
    """``start``: whose weights the model starts from; a bare name is that of an earlier fit of the plan."""

    fit: str | None = Field(default=None, description="an earlier fit of the same plan")
    path: str | None = Field(default=None, description="or a finished run's folder, or a saved model's")
    part: Literal["model", "trunk"] = Field(default="model", description="what is taken over")
    metric_loss: bool = Field(default=False, description="and the weights of its metric loss, such as proxies")

    @model_validator(mode="after")
    def _one_source(self) -> "StartConfig":
        if (self.fit is None) == (self.path is None):
            raise ValueError("give either fit or path")
        return self


def starting(value: object) -> object:
    """A bare name as the mapping it stands for."""
    return {"fit": value} if isinstance(value, str) else value


class EvalConfig(_Section):
    """``eval``: what is measured."""

    metrics: tuple[str, ...] = ("recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "nmi")


class RunConfig(_Section):
    """A whole configuration file."""

    data: Annotated[DataConfig, BeforeValidator(named)]
    model: dict[str, Any] = Field(default_factory=dict)
    start: Annotated[StartConfig | None, BeforeValidator(starting)] = None
    metric_loss: NamedPart
    metric_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False, description="factor on the metric loss")
    classes: ClassesConfig | None = Field(
        default=None, description="an auxiliary head; None: one where a method needs it and the loss has no classes"
    )
    exits: ExitsConfig | None = Field(
        default=None, description="of the backbone; None: as is usual where a method trains exits, else none"
    )
    miner: NamedPart | None = None
    distill: tuple[Annotated[TermConfig, BeforeValidator(named)], ...] = ()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    def to_yaml(self) -> str:
        """The configuration as resolved, defaults included: what a run folder's ``config.yaml`` holds."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)
