"""Backbones by name: a small network of our own for small images, and torchvision's classification networks."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from dmlkd.chunks import held_statistics
from dmlkd.errors import ConfigError, suggestion
from dmlkd.models.pre_activations import last_norm, run_stage


class StageMaps(NamedTuple):
    """What the stages of a backbone give, shallow to deep.

    Attributes:
        outputs: of each stage.
        pre_activations: (B, C_k, H_k, W_k) before the last ReLU of each stage; None if not asked for.
    """

    outputs: tuple[Tensor, ...]
    pre_activations: tuple[Tensor, ...] | None = None


class Trunk(nn.Module):
    """A backbone without its classifier.

    Args:
        stages: run one after the other, shallow to deep.
        channels: C of each stage's output.
        spatial: whether the last output is a feature map (B, C, H, W), still to be pooled, or features (B, C).
    """

    def __init__(self, stages: nn.Sequential, *, channels: Sequence[int], spatial: bool) -> None:
        super().__init__()
        self.stages = stages
        self.stage_channels = tuple(channels)
        self.spatial = spatial
        self._frozen_batch_norm = False
        self._checkpointed = False

    def checkpoint_stages(self, wanted: bool = True) -> None:
        """Keep for the backward pass only what each stage is given, and compute the rest of it again there.

        Values, gradients, and the running statistics of batch norm are those without; a step has one more forward pass.
        A backbone of a single stage gains nothing by it. It is not saved with the model.

        Args:
            wanted: whether; False: keep all activations, as before.
        """
        self._checkpointed = wanted

    @property
    def channels(self) -> int:
        """C of the last stage's output."""
        return self.stage_channels[-1]

    def freeze_batch_norm(self) -> None:
        """From now on batch norm normalises by its running statistics, which never move, in train mode too.

        Scale and shift are trained as before.
        """
        self._frozen_batch_norm = True
        self.train(self.training)

    @override
    def train(self, mode: bool = True) -> "Trunk":
        """Set the mode of every module; frozen batch norm stays in eval mode."""
        super().train(mode)
        if self._frozen_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def pre_activation_norms(self) -> tuple[Tensor, ...]:
        """Mean and standard deviation (2, C_k) of each stage before its last ReLU, by the batch norm that stands there.

        They are its shift, and its scale without sign; of a ResNet's stage they leave out what the shortcut adds.
        Empty for a backbone whose stages do not all end in batch norm and ReLU: it has no ``pre_activations``.
        """
        norms = [last_norm(stage) for stage in self.stages]
        known = [torch.stack([norm.bias, norm.weight.abs()]).detach() for norm in norms if norm is not None]
        return tuple(known) if len(known) == len(norms) else ()

    def forward(self, images: Tensor, *, pre_activations: bool = False) -> StageMaps:
        """Return the output of each stage, the last one last.

        Args:
            images: (B, C, H, W) float images.
            pre_activations: keep what stands before the last ReLU of each stage too.
        """
        outputs, before = [], []
        again = self._checkpointed and torch.is_grad_enabled()
        for stage in self.stages:
            if pre_activations:
                run = functools.partial(run_stage, stage)
                kept, images = _checkpointed(run, stage, images) if again else run(images)
                before.append(kept)
            else:
                images = _checkpointed(stage, stage, images) if again else stage(images)
            outputs.append(images)
        return StageMaps(tuple(outputs), tuple(before) if pre_activations else None)


def _checkpointed(run: Callable[[Tensor], Any], stage: nn.Module, images: Tensor) -> Any:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), held_statistics(stage)

    return checkpoint(run, images, use_reentrant=False, context_fn=contexts)


def compile_trunks(holder: nn.Module) -> None:
    """Compile every trunk in a module on its first use, with ``torch.compile``; names in ``state_dict()`` stay.

    Args:
        holder: a model, or an objective, whose teachers' trunks are meant.
    """
    for module in holder.modules():
        if isinstance(module, Trunk):
            module.compile()


def convnet4(*, in_channels: int = 3, width: int = 32) -> Trunk:
    """Four blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling: for images of about 8 to 84 pixels.

    Blocks that would pool a single row or column away pool less (``ceil_mode``), so images down to 1 pixel pass.

    Args:
        in_channels: colour channels of the images.
        width: channels of every block.

    Raises:
        ConfigError: unless both are at least 1.
    """
    for name, value in (("in_channels", in_channels), ("width", width)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    stages = nn.Sequential(
        *(
            nn.Sequential(
                nn.Conv2d(in_channels if block == 0 else width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2, ceil_mode=True),
            )
            for block in range(4)
        )
    )
    return Trunk(stages, channels=[width] * len(stages), spatial=True)


_OWN = {"convnet4": convnet4}

# These return a tuple while training, or end in a convolution, and so have no features to take.
_UNSUITED = frozenset({"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"})


def backbone_names() -> list[str]:
    """Every valid name, ours first, then torchvision's."""
    theirs = torchvision.models.list_models(module=torchvision.models)
    return [*_OWN, *sorted(set(theirs) - _UNSUITED)]


def build_trunk(name: str, *, weights: str | None = None, in_channels: int = 3, **arguments: Any) -> Trunk:
    """Build a backbone without its classifier.

    The ResNet family gives its stem and four stages, and its feature map is pooled by the embedding model. Every
    other network of torchvision runs as its authors wrote it, pooling included, up to its last linear layer.

    Args:
        name: one of :func:`backbone_names`.
        weights: torchvision's name of a set of weights, such as "IMAGENET1K_V2" or "DEFAULT"; None: random.
        in_channels: colour channels of the images; torchvision's networks take 3.
        arguments: further arguments of one of our own backbones, such as ``width``.

    Raises:
        ConfigError: for an unknown backbone or set of weights, or an argument that the backbone does not take.
    """
    if name in _OWN:
        if weights is not None:
            raise ConfigError(f"backbone {name!r} has no published weights, got weights={weights!r}; leave it out")
        unknown = sorted(set(arguments) - {"width"})
        if unknown:
            raise ConfigError(f"backbone {name!r} takes no {unknown[0]!r}{suggestion(unknown[0], ['width'])}")
        return _OWN[name](in_channels=in_channels, **arguments)
    if name not in backbone_names():
        raise ConfigError(f"unknown backbone {name!r}{suggestion(name, backbone_names())}")
    if arguments:
        raise ConfigError(f"backbone {name!r} takes no {sorted(arguments)[0]!r}")
    if in_channels != 3:
        raise ConfigError(f"backbone {name!r} takes images of 3 channels, got {in_channels}; set data.channels to 3")
    return _strip_classifier(_torchvision_network(name, weights))


def _torchvision_network(name: str, weights: str | None) -> nn.Module:
    if weights is not None:
        valid = [w.name for w in torchvision.models.get_model_weights(name)]
        if weights not in (*valid, "DEFAULT"):
            raise ConfigError(f"backbone {name!r} has no weights {weights!r}{suggestion(weights, [*valid, 'DEFAULT'])}")
    network: nn.Module = torchvision.models.get_model(name, weights=weights)
    return network


def _strip_classifier(network: nn.Module) -> Trunk:
    if isinstance(network, torchvision.models.ResNet):
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        stages = nn.Sequential(stem, network.layer1, network.layer2, network.layer3, network.layer4)
        layers = (network.layer1, network.layer2, network.layer3, network.layer4)
        channels = [*(layer[0].conv1.in_channels for layer in layers), network.fc.in_features]
        return Trunk(stages, channels=channels, spatial=True)
    path, last = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return Trunk(nn.Sequential(network), channels=[last.in_features], spatial=False)
