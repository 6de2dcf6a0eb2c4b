"""An embedding model with exits after inner stages: what is trained to give several encoders at once."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from dmlkd.errors import ConfigError
from dmlkd.exits import Exit
from dmlkd.models.embedding import EmbeddingModel
from dmlkd.models.trunk import Trunk
from dmlkd.signals import Need, Signals, unit_length

_OF_EXITS: frozenset[Need] = frozenset({"exit_embeddings", "exit_features"})


class ExitingModel(nn.Module):
    """An embedding model and exits after some of its trunk's inner stages, each with an embedding of its own.

    Called as the embedding model alone is; its :meth:`signals` have those of the exits too, from the same pass. Export
    its ``model`` and, each alone, its :meth:`encoders`.

    Args:
        model: the embedding model.
        stages: after which the exits are, counted from 0; None: after every inner one that is no mere stem.
        width: channels within an exit's bottleneck; None: see :func:`dmlkd.exits.bottleneck`.

    Attributes:
        stages: after which the exits are, shallow to deep.

    Raises:
        ConfigError: if there is no such inner stage, one is named twice, or for a width below 1.

    >>> model = ExitingModel(EmbeddingModel("convnet4", dim=8, in_channels=1))
    >>> signals = model.signals(torch.rand(2, 1, 28, 28), ["exit_embeddings"])
    >>> model.stages, [tuple(z.shape) for z in signals.exit_embeddings]
    ((0, 1, 2), [(2, 8), (2, 8), (2, 8)])
    """

    def __init__(self, model: EmbeddingModel, *, stages: Sequence[int] | None = None, width: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.width = width
        self.gives = model.gives | _OF_EXITS
        inner = range(model.trunk.first_exit, len(model.trunk.stage_channels) - 1)
        self.stages = tuple(inner) if stages is None else tuple(sorted(stages))
        if model.exit_stage is not None:
            raise ConfigError("a model that is itself an exit has none of its own; leave exit_stage out")
        if not self.stages:
            raise ConfigError(
                "this backbone has no inner stage to leave from" if stages is None else "stages must name at least one"
            )
        if len(set(self.stages)) < len(self.stages):
            raise ConfigError(f"stages must differ, got {list(self.stages)}")
        try:
            self.exits = nn.ModuleList(
                Exit(**model.trunk.exit_arguments(stage), outputs=model.dim, width=width) for stage in self.stages
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def trunk(self) -> Trunk:
        """The embedding model's."""
        return self.model.trunk

    @property
    def dim(self) -> int:
        """The embedding model's."""
        return self.model.dim

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D) embeddings of unit length of images (B, C, H, W): those of the whole network."""
        embeddings: Tensor = self.model(images)
        return embeddings

    def signals(self, images: Tensor, needs: Collection[Need] = ()) -> Signals:
        """The embedding model's signals and, if needed, those of the exits.

        See :meth:`dmlkd.models.EmbeddingModel.signals`.
        """
        if not _OF_EXITS & set(needs):
            return self.model.signals(images, needs)
        signals = self.model.signals(images, {*needs, "stages"} - _OF_EXITS)
        assert signals.stages is not None
        said = [leaving(signals.stages[stage]) for stage, leaving in zip(self.stages, self.exits, strict=True)]
        return signals._replace(
            stages=signals.stages if "stages" in needs else None,
            exit_embeddings=tuple(unit_length(one.outputs) for one in said),
            exit_features=tuple(one.features for one in said),
        )

    def from_features(self, features: Tensor) -> Tensor:
        """Return (B, D) embeddings of unit length of pooled trunk features (B, F)."""
        return self.model.from_features(features)

    def encoders(self) -> dict[str, EmbeddingModel]:
        """Each exit as a model of its own, with a copy of the stages before it; in eval mode, by name of its stage."""
        return {f"stage-{stage}": self._encoder(number) for number, stage in enumerate(self.stages)}

    def _encoder(self, number: int) -> EmbeddingModel:
        own = {"pool": "avg", "hidden": None, "exit_stage": self.stages[number], "exit_width": self.width}
        arguments = {**self.model.arguments, **own}
        with torch.random.fork_rng(devices=[]):  # its first weights are written over
            encoder = EmbeddingModel(**arguments)
        weights = {f"trunk.{name}": tensor for name, tensor in self.model.trunk.state_dict().items()}
        weights |= self.exits[number].state_dict()
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
        encoder.preparation = self.model.preparation
        return encoder.to(next(self.model.head.parameters()).device).eval()


def embedding_model(network: nn.Module) -> EmbeddingModel:
    """The embedding model within what is trained: without exits and class scores."""
    while not isinstance(network, EmbeddingModel):
        inner = network.model
        assert isinstance(inner, nn.Module)
        network = inner
    return network


def exits_of(network: nn.Module) -> ExitingModel | None:
    """What has exits within what is trained; None: nothing."""
    if isinstance(network, EmbeddingModel | ExitingModel):
        return network if isinstance(network, ExitingModel) else None
    inner = network.model
    assert isinstance(inner, nn.Module)
    return exits_of(inner)
