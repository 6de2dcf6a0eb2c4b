"""What one forward pass gives: the type that models produce and losses, teachers and terms consume."""

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F

Need = Literal["embeddings", "features", "logits", "stages"]
"""A field of :class:`Signals` that a distillation method can ask for."""


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
    """

    embeddings: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None

    def take(self, positions: Tensor) -> "Signals":
        """What is said of the images at some positions (K,) of the batch."""
        return Signals(
            self.embeddings[positions],
            None if self.features is None else self.features[positions],
            None if self.logits is None else self.logits[positions],
            None if self.stages is None else tuple(stage[positions] for stage in self.stages),
        )


class SignalNetwork(Protocol):
    """A network that can be trained and can teach: anything with this method and :class:`torch.nn.Module` below it."""

    def signals(self, images: Tensor, needs: Collection[Need] = ()) -> Signals:
        """One forward pass; fields outside ``needs`` may be left None, embeddings never."""
        ...


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors (B, D) scaled to unit length, in float32 or wider."""
    return F.normalize(vectors if vectors.dtype.itemsize >= 4 else vectors.float(), dim=1)
