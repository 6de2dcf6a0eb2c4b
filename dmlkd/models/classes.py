"""Class scores beside the embeddings: what methods that distil class posteriors read. No part of an exported model."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.errors import ConfigError, UserError
from dmlkd.files import replacing
from dmlkd.models.embedding import EmbeddingModel
from dmlkd.models.exiting import ExitingModel
from dmlkd.models.trunk import Trunk
from dmlkd.signals import Need, Signals

Combination = Literal["logsumexp", "max", "softmax"]
"""How the scores of a class's K centres become the score of the class; see :class:`ClassScores`."""


class ClassScores(nn.Module, ABC):
    r"""Base of what gives scores of C classes with K centres each, :math:`o_{ck} = s\, z \cdot w_{ck}`.

    The score of a class is, by ``combination``, :math:`\log \sum_k \exp o_{ck}` ("logsumexp", so that the class's
    probability is the sum of its subclasses'), :math:`\max_k o_{ck}` ("max"), or the mean of :math:`o_{ck}` weighted by
    :math:`\mathrm{softmax}_k(\gamma\, o_{ck} / s)` ("softmax").

    Attributes:
        combination: one of the three.
        gamma: of "softmax".
    """

    combination: Combination = "logsumexp"
    gamma: float = 1.0

    @property
    @abstractmethod
    def scale(self) -> float:
        """s, the inverse of the softmax's temperature."""

    @abstractmethod
    def centres(self) -> Tensor:
        """w (C, K, D), as the scores use them: with gradient, mostly of unit length."""

    def class_weights(self) -> Tensor:
        """One vector of unit length for each class, (C, D): the direction of its centres' sum."""
        return F.normalize(self.centres().sum(dim=1), dim=1)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (B, C) of classes and (B, C, K) of their centres, in float32 or wider.

        Args:
            embeddings: (B, D) of unit length.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            centres = self.centres().to(embeddings.dtype)
            subclasses = self.scale * torch.einsum("bd,ckd->bck", embeddings, centres)
            if subclasses.shape[2] == 1:
                return subclasses.squeeze(2), subclasses
            if self.combination == "logsumexp":
                return subclasses.logsumexp(dim=2), subclasses
            if self.combination == "max":
                return subclasses.amax(dim=2), subclasses
            shares = (self.gamma / self.scale * subclasses).softmax(dim=2)
            return (shares * subclasses).sum(dim=2), subclasses


class ClassHead(ClassScores):
    """Class weights of unit length that are trained for themselves: the auxiliary head beside a pair loss.

    Args:
        dim: D, the length of an embedding.
        classes: C.
        subclasses: K, centres of a class.
        scale: s > 0.

    Raises:
        ConfigError: for a number out of range, naming it.

    >>> head = ClassHead(dim=8, classes=5, subclasses=3)
    >>> logits, subclasses = head(F.normalize(torch.randn(2, 8), dim=1))
    >>> tuple(logits.shape), tuple(subclasses.shape)
    ((2, 5), (2, 5, 3))
    """

    def __init__(self, *, dim: int, classes: int, subclasses: int = 1, scale: float = 16.0) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("classes", classes), ("subclasses", subclasses)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not scale > 0:
            raise ConfigError(f"scale must be above 0, got {scale}")
        self._scale = float(scale)
        self.weight = nn.Parameter(torch.randn(classes, subclasses, dim))

    @property
    @override
    def scale(self) -> float:
        return self._scale

    @override
    def centres(self) -> Tensor:
        return F.normalize(self.weight, dim=2)


class SavedClasses(ClassScores):
    """The class scores of a finished run, as its folder keeps them: they are not trained.

    Args:
        centres: (C, K, D), as the scores use them.
        scale: s.
        combination: of the centres' scores.
        gamma: of the combination "softmax".
    """

    def __init__(self, centres: Tensor, *, scale: float, combination: Combination, gamma: float) -> None:
        super().__init__()
        self.register_buffer("_centres", centres)
        self.register_buffer("_known", torch.ones(len(centres), dtype=torch.bool), persistent=False)
        self._scale = scale
        self.combination = combination
        self.gamma = gamma

    @property
    @override
    def scale(self) -> float:
        return self._scale

    @override
    def centres(self) -> Tensor:
        return self.get_buffer("_centres")

    def only(self, classes: Tensor) -> None:
        """Score these classes (K,) alone from now on: the scores of others become minus infinity."""
        known = self.get_buffer("_known")
        known.fill_(False)[classes] = True

    @override
    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        logits, subclasses = super().forward(embeddings)
        unknown = ~self.get_buffer("_known")
        return logits.masked_fill(unknown, -torch.inf), subclasses.masked_fill(unknown[:, None], -torch.inf)


def save_classes(classes: ClassScores, file: Path) -> None:
    """Write class scores to a safetensors file, whole or not at all."""
    how = {"scale": repr(classes.scale), "combination": classes.combination, "gamma": repr(classes.gamma)}
    with replacing(file) as temporary:
        save_file({"centres": classes.centres().detach().cpu().contiguous()}, temporary, metadata=how)


def load_classes(file: Path) -> SavedClasses:
    """Read what :func:`save_classes` wrote.

    Raises:
        UserError: in one line, if the file is not there or holds something else.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            how = opened.metadata() or {}
            centres = opened.get_tensor("centres")
        combination: Combination = next(name for name in get_args(Combination) if name == how["combination"])
        if centres.ndim != 3:
            raise ValueError(f"centres must have shape (C, K, D), got {tuple(centres.shape)}")
        return SavedClasses(centres, scale=float(how["scale"]), combination=combination, gamma=float(how["gamma"]))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist: its run had no class scores") from None
    except (SafetensorError, KeyError, StopIteration, ValueError) as error:
        raise UserError(f"{file} cannot be read as class scores: {' '.join(str(error).split())}") from None


class ClassifyingModel(nn.Module):
    """An embedding model with class scores: the student of methods that distil class posteriors.

    Called as the embedding model alone is; its :meth:`signals` have logits too. Export its ``model``.

    Args:
        model: the embedding model, with exits or without.
        classes: the scores of the training classes.

    >>> model = ClassifyingModel(EmbeddingModel(in_channels=1, dim=8), ClassHead(dim=8, classes=5))
    >>> tuple(model.signals(torch.rand(2, 1, 8, 8), ["logits"]).logits.shape)
    (2, 5)
    """

    gives: frozenset[Need]

    def __init__(self, model: EmbeddingModel | ExitingModel, classes: ClassScores) -> None:
        super().__init__()
        self.model = model
        self.classes = classes
        self.gives = model.gives | {"logits", "subclass_logits"}

    @property
    def trunk(self) -> Trunk:
        """The embedding model's."""
        return self.model.trunk

    @property
    def dim(self) -> int:
        """The embedding model's."""
        return self.model.dim

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D) embeddings of unit length of images (B, C, H, W)."""
        embeddings: Tensor = self.model(images)
        return embeddings

    def signals(self, images: Tensor, needs: Collection[Need] = ()) -> Signals:
        """The embedding model's signals and, if needed, logits; see :meth:`dmlkd.models.EmbeddingModel.signals`."""
        signals = self.model.signals(images, [need for need in needs if need not in ("logits", "subclass_logits")])
        if "logits" not in needs and "subclass_logits" not in needs:
            return signals
        logits, subclasses = self.classes(signals.embeddings)
        return signals._replace(logits=logits, subclass_logits=subclasses if "subclass_logits" in needs else None)

    def classify(self, features: Tensor) -> Tensor:
        """Return the class scores (B, C) of pooled trunk features (B, F)."""
        logits: Tensor = self.classes(self.model.from_features(features))[0]
        return logits
