"""The embedding model: images in, embeddings of unit length out."""

import contextlib
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from dmlkd.data.preprocessing import save_transforms
from dmlkd.errors import ConfigError
from dmlkd.exits import bottleneck
from dmlkd.models.backbones import build_trunk
from dmlkd.models.preparing import ImageLike, Preparation, batches, preparation
from dmlkd.models.saved import model_folder, reading
from dmlkd.models.trunk import Trunk
from dmlkd.signals import BEFORE_RELU, Need, Signals, unit_length

_OF_THE_HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only")


class EmbeddingModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="dmlkd",
    license="mit",
    tags=["metric-learning", "image-retrieval", "self-distillation"],
    pipeline_tag="image-feature-extraction",
):
    """Trunk, global pooling, head, unit length.

    ``save_pretrained(folder)`` writes ``config.json`` and ``model.safetensors``; ``from_pretrained(folder)`` reads
    them back, or a name on the Hugging Face hub; ``push_to_hub(name)`` uploads.

    Args:
        backbone: "convnet4" or the name of a torchvision classification network, such as "resnet50".
        dim: D, the length of an embedding.
        pool: "avg" or "max", for backbones that end in a feature map; others pool by themselves, whatever it says.
        weights: torchvision's name of the weights the backbone starts from, such as "IMAGENET1K_V2"; None: random.
            Not kept by ``save_pretrained``: a saved model has weights of its own.
        in_channels: colour channels of the images.
        backbone_args: further arguments of the backbone, such as ``{"width": 64}`` of convnet4.
        hidden: width of a hidden layer of the head, with a ReLU: a projection head, as of MoCo v2
            (https://arxiv.org/abs/2003.04297); None: the head is linear.
        frozen_batch_norm: batch norm normalises by the running statistics the backbone starts from, which never move,
            while its scale and shift are trained: for backbones with ``weights`` (arXiv 2002.08473). Copies of the
            model, such as teachers, keep it in whatever mode they run.
        exit_stage: leave the backbone after this inner stage, counted from 0, by an exit: a bottleneck
            (:func:`dmlkd.exits.bottleneck`) to as many features as the whole backbone gives, before pooling and head.
            The stages behind it are neither held nor run. None: the whole backbone.
        exit_width: channels within the exit's bottleneck; None: as :func:`dmlkd.exits.bottleneck` has it.

    Attributes:
        gives: the fields of its signals that it has.
        features: F, the length of the pooled features that the head is given.
        preparation: how its images are prepared, as its folder said; None: nothing says so.

    Raises:
        ConfigError: for an unknown name or a bad number, naming it and what would be right.

    >>> import torch
    >>> model = EmbeddingModel("convnet4", dim=16, in_channels=1).eval()
    >>> z = model(torch.rand(2, 1, 28, 28))
    >>> tuple(z.shape), torch.allclose(z.norm(dim=1), torch.ones(2))
    ((2, 16), True)
    """

    gives: frozenset[Need] = frozenset({"embeddings", "features", "stages"})

    def __init__(
        self,
        backbone: str = "convnet4",
        dim: int = 64,
        *,
        pool: Literal["avg", "max"] = "avg",
        weights: str | None = None,
        in_channels: int = 3,
        backbone_args: dict[str, Any] | None = None,
        hidden: int | None = None,
        frozen_batch_norm: bool = False,
        exit_stage: int | None = None,
        exit_width: int | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ConfigError(f"dim must be at least 1, got {dim}")
        if hidden is not None and hidden < 1:
            raise ConfigError(f"hidden must be at least 1, got {hidden}")
        if pool not in ("avg", "max"):
            raise ConfigError(f"pool must be 'avg' or 'max', got {pool!r}")
        if exit_stage is None and exit_width is not None:
            raise ConfigError(f"exit_width goes with exit_stage, got {exit_width} alone")
        self.preparation: Preparation | None = None
        self.dim = dim
        self.in_channels = in_channels
        trunk = build_trunk(backbone, weights=weights, in_channels=in_channels, **(backbone_args or {}))
        exit_ = None if exit_stage is None else _bottleneck(trunk, exit_stage, exit_width)
        self.features = trunk.channels
        self.exit_stage = exit_stage
        self.trunk = trunk if exit_stage is None else trunk.cut(exit_stage)
        if frozen_batch_norm:
            self.trunk.freeze_batch_norm()
        self.bottleneck = exit_
        self.pool = nn.AdaptiveAvgPool2d(1) if pool == "avg" else nn.AdaptiveMaxPool2d(1)
        self.head = _head(self.features, hidden, dim)
        norms = self.trunk.pre_activation_norms()
        self.gives = type(self).gives | (BEFORE_RELU if norms else frozenset())
        assert isinstance(self._hub_mixin_config, dict)
        self._hub_mixin_config["weights"] = None
        for name, given in (("exit_stage", exit_stage), ("exit_width", exit_width), ("hidden", hidden)):
            if given is None:  # saved, and known by its fingerprint, as before there were such things
                self._hub_mixin_config.pop(name, None)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor was given, as saved in ``config.json``: without the weights it started from."""
        assert isinstance(self._hub_mixin_config, dict)
        return dict(self._hub_mixin_config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Any) -> "EmbeddingModel":
        """Read a saved model, in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the Hugging Face hub.
            arguments: of huggingface_hub, such as ``revision``, ``token`` and ``cache_dir``.

        Raises:
            UserError: in one line, if there is no such folder or name, or what is there cannot be read as a model.
        """
        hub = {name: arguments.pop(name) for name in _OF_THE_HUB if name in arguments}
        folder = model_folder(pretrained_model_name_or_path, **hub)
        with reading(folder), contextlib.redirect_stdout(io.StringIO()):  # the mixin prints; standard output is ours
            model: EmbeddingModel = super().from_pretrained(folder, strict=True, **arguments)
        model.preparation = preparation(folder)
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        if self.preparation is not None:
            save_transforms(save_directory, self.preparation.preprocessing)

    @torch.no_grad()
    def embed(self, images: Tensor | Sequence[ImageLike], *, batch_size: int = 256) -> Tensor:
        """Embed images in batches, in eval mode; the mode it was in is put back.

        Args:
            images: paths, PIL images or (C, H, W) uint8 pixels, mixed as you like, which are read and prepared as
                ``preparation`` says; or one tensor (N, C, H, W) of floats, which are taken as prepared.
            batch_size: images at a time.

        Returns:
            (N, D) embeddings of unit length, on the CPU.

        Raises:
            UserError: if an image cannot be read, or nothing says how to prepare it.
        """
        was_training, device = self.training, next(self.head.parameters()).device
        self.eval()
        try:
            parts = [self(part.to(device)).cpu() for part in batches(images, batch_size, self.preparation)]
            return torch.cat(parts) if parts else torch.empty(0, self.dim)
        finally:
            self.train(was_training)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D) embeddings of unit length, in float32 or wider also under autocast.

        Args:
            images: (B, C, H, W) float images, transformed as in training.
        """
        return self.signals(images).embeddings

    def signals(self, images: Tensor, needs: Collection[Need] = ()) -> Signals:
        """Embeddings, pooled features and, if needed, the feature maps of the stages, in one pass.

        Args:
            images: (B, C, H, W) float images.
            needs: ask for "stages", "pre_activations" and "pre_activation_norms" here; the rest costs nothing and is
                always given.

        Raises:
            ValueError: if "logits" are needed: this model has no class weights; or what stands before a ReLU, of a
                backbone whose stages do not end in batch norm and ReLU.
        """
        if "logits" in needs or "subclass_logits" in needs:
            raise ValueError("an EmbeddingModel has no class weights and so no logits; a ClassifyingModel has")
        if lacking := sorted(set(needs) - self.gives):
            why = "this backbone's stages do not end in batch norm and ReLU: it has"
            raise ValueError(f"{why if lacking[0] in BEFORE_RELU else 'an EmbeddingModel has'} no {lacking[0]}")
        said = self.trunk(images, pre_activations="pre_activations" in needs)
        features = said.features
        if features is None:
            maps = said.stages[-1] if self.bottleneck is None else self.bottleneck(said.stages[-1])
            features = self.pool(maps).flatten(1)
        return Signals(
            embeddings=self.from_features(features),
            features=features,
            stages=said.stages if "stages" in needs else None,
            pre_activations=said.pre_activations,
            pre_activation_norms=self._norms(len(images)) if "pre_activation_norms" in needs else None,
        )

    def _norms(self, images: int) -> tuple[Tensor, ...]:
        return tuple(norm.expand(images, *norm.shape) for norm in self.trunk.pre_activation_norms())

    def from_features(self, features: Tensor) -> Tensor:
        """Return (B, D) embeddings of unit length of pooled trunk features (B, F)."""
        return unit_length(self.head(features))


def _bottleneck(trunk: Trunk, stage: int, width: int | None) -> nn.Sequential:
    try:
        return bottleneck(**trunk.exit_arguments(stage), width=width)
    except ValueError as error:
        named = str(error).startswith(("stage", "width"))
        raise ConfigError(f"exit_{error}" if named else str(error)) from None


def _head(features: int, hidden: int | None, dim: int) -> nn.Module:
    if hidden is None:
        return nn.Linear(features, dim)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
