"""What one forward pass gives: the type that models produce and losses, teachers and terms consume."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Need = Literal[
    "embeddings",
    "features",
    "logits",
    "subclass_logits",
    "stages",
    "exit_embeddings",
    "exit_features",
    "metric_gradient",
    "pre_activations",
    "pre_activation_norms",
]
"""A field of :class:`Signals` that a distillation method can ask for."""

BEFORE_RELU: frozenset[Need] = frozenset({"pre_activations", "pre_activation_norms"})
"""Of these, what only a backbone gives whose stages end in batch norm and ReLU."""


class Batch(NamedTuple):
    """One batch as the data loader yields it.

    Attributes:
        images: (B, C, H, W) float images, transformed.
        labels: (B,) int64 class labels, 0 to C - 1.
        rows: (B,) int64 stable indices of the images in their data set, the same in every epoch.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor

    def take(self, positions: Tensor) -> "Batch":
        """The images at some positions (K,) of the batch."""
        return Batch(*(field[positions] for field in self))

    def signals_of(self, network: Callable[[Tensor], "Signals"], needs: Collection[Need] = ()) -> "Signals":  # noqa: ARG002
        """What a network says of all images of the batch, wherever they are: each process runs it on its own.

        Args:
            network: from images to signals, without gradient.
            needs: the fields that are read besides the embeddings; the others may be None.
        """
        return network(self.images)


class Signals(NamedTuple):
    """What a network says of a batch of B images.

    Attributes:
        embeddings: (B, D) embeddings of unit length, float32 or wider.
        features: (B, F) pooled trunk features, before the embedding head; None if not computed.
        logits: (B, C) class scores; None if the network has no class weights or they were not asked for.
        stages: the trunk's feature maps, shallow to deep, (B, C_k, H_k, W_k) each; None if not asked for.
        subclass_logits: (B, C, K) scores of K subclasses of each class; None as ``logits`` is.
        exit_embeddings: (B, D) of unit length of each exit, shallow to deep; None if the network has no exits or they
            were not asked for.
        exit_features: (B, F) pooled features of each exit; None as ``exit_embeddings`` are.
        metric_gradient: (B, D) gradient of the metric loss with respect to the embeddings, itself without gradient;
            None if not asked for. No network says this: the objective adds it to what the student says.
        pre_activations: before the last ReLU of each stage, shallow to deep, (B, C_k, H_k, W_k) each; None as
            ``stages`` is.
        pre_activation_norms: (B, 2, C_k) each, the same for all images: mean and standard deviation of every channel
            of ``pre_activations`` by the batch norm that stands there; None as ``stages`` is.
    """

    embeddings: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None
    subclass_logits: Tensor | None = None
    exit_embeddings: tuple[Tensor, ...] | None = None
    exit_features: tuple[Tensor, ...] | None = None
    metric_gradient: Tensor | None = None
    pre_activations: tuple[Tensor, ...] | None = None
    pre_activation_norms: tuple[Tensor, ...] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Signals":
        """Every tensor that is there, put through a function."""
        return Signals.joined([self], lambda tensors: function(tensors[0]))

    def take(self, positions: Tensor) -> "Signals":
        """What is said of the images at some positions (K,) of the batch."""
        return self.map(lambda tensor: tensor[positions])

    def only(self, needs: Collection[Need]) -> "Signals":
        """Embeddings and the needed fields; the others None."""
        left_out: dict[str, Any] = {name: None for name in self._fields[1:] if name not in needs}
        return self._replace(**left_out)

    @staticmethod
    def joined(parts: "Sequence[Signals]", function: Callable[[tuple[Tensor, ...]], Tensor] = torch.cat) -> "Signals":
        """What is said of several batches, as of one.

        Args:
            parts: with the same fields.
            function: makes one tensor of the parts' tensors.
        """

        def join(values: tuple[Tensor | tuple[Tensor, ...] | None, ...]) -> Tensor | tuple[Tensor, ...] | None:
            if values[0] is None:
                return None
            if isinstance(values[0], tuple):
                return tuple(function(tensors) for tensors in zip(*values, strict=True))
            return function(values)  # type: ignore[arg-type]

        return Signals(*(join(values) for values in zip(*parts, strict=True)))  # type: ignore[arg-type]


class SignalNetwork(Protocol):
    """A network that can be trained and can teach: anything with this method and :class:`torch.nn.Module` below it."""

    def signals(self, images: Tensor, needs: Collection[Need] = ()) -> Signals:
        """One forward pass; fields outside ``needs`` may be left None, embeddings never."""
        ...


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors (B, D) scaled to unit length, in float32 or wider."""
    return F.normalize(vectors if vectors.dtype.itemsize >= 4 else vectors.float(), dim=1)
