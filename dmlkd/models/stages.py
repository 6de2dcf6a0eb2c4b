"""torchvision's classification networks cut into stages."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import (
    VGG,
    AlexNet,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MaxVit,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SwinTransformer,
    VisionTransformer,
)
from typing_extensions import override

from dmlkd.models.trunk import Trunk

_TRANSFORMER_STAGES = 4
_RESNET_STRIDES = (4, 4, 8, 16, 32)
_SIZE = 224


class _Body(NamedTuple):
    """Where a network has the modules that make its feature maps, in order, and how many stages are but a stem."""

    attributes: tuple[str, ...]
    stems: int = 0


_FEATURES = _Body(("features",))
_BODIES: dict[type[nn.Module], _Body] = {
    AlexNet: _FEATURES,
    ConvNeXt: _FEATURES,
    DenseNet: _Body(("features",), stems=1),
    EfficientNet: _FEATURES,
    MaxVit: _Body(("stem", "blocks"), stems=1),
    MNASNet: _Body(("layers",)),
    MobileNetV2: _FEATURES,
    MobileNetV3: _FEATURES,
    RegNet: _Body(("stem", "trunk_output"), stems=1),
    ShuffleNetV2: _Body(("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"), stems=1),
    SwinTransformer: _FEATURES,
    VGG: _FEATURES,
}


def staged(network: nn.Module) -> Trunk:
    """A network of torchvision up to its last linear layer, in stages. Its modules are taken over.

    A ResNet gives its stem and its four layers; a ViT four equal shares of its blocks, of whose tokens those of the
    patches are the feature map, and the class token the features; any other a stage for each height of its maps.

    Args:
        network: one of torchvision's classification networks, as its constructor made it.
    """
    if isinstance(network, ResNet):
        stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        layers = (network.layer1, network.layer2, network.layer3, network.layer4)
        before = [layer[0].conv1.in_channels for layer in layers]
        return Trunk(
            nn.Sequential(stem, *layers),
            channels=[*before, network.fc.in_features],
            strides=_RESNET_STRIDES,
            first_exit=1,
        )
    if isinstance(network, VisionTransformer):
        return _transformer(network)
    features = _without_last_linear(network)
    body = _BODIES[type(network)]
    modules = [module for name in body.attributes for module in _parts(getattr(network, name))]
    maps = _channels_first if isinstance(network, SwinTransformer) else None
    stages, channels, strides = _by_height(modules, maps)
    for name in body.attributes:
        empty = nn.ModuleList() if isinstance(getattr(network, name), nn.ModuleList) else nn.Identity()
        setattr(network, name, empty)
    return Trunk(
        stages,
        channels=channels,
        maps=maps,
        finish=network,
        features=features,
        strides=strides,
        first_exit=body.stems,
    )


def _without_last_linear(network: nn.Module) -> int:
    """Take off a network's last linear layer; returns how many features it was given."""
    path, last = [(p, m) for p, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return last.in_features


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """What runs one after the other; a block, which may be a sequence of a kind of its own, is not taken apart."""
    return iter(module.children() if type(module) in (nn.Sequential, nn.ModuleList) else (module,))


def _by_height(
    modules: list[nn.Module], maps: Callable[[Tensor], Tensor] | None
) -> tuple[nn.Sequential, list[int], list[int]]:
    """Modules that run one after the other as stages, each of maps of one height; channels and strides of each.

    What has no weights, a pooling at the end say, is no stage of its own.
    """
    stages: list[list[nn.Module]] = []
    channels: list[int] = []
    strides: list[int] = []
    outputs, before = torch.empty(1, 3, _SIZE, _SIZE, device="meta"), math.inf
    for module in modules:
        outputs = _shape_only(module, outputs)
        _, width, height, _ = (outputs if maps is None else maps(outputs)).shape
        if height < before:
            stages.append([])
            channels.append(width)
            strides.append(round(_SIZE / height))
        stages[-1].append(module)
        channels[-1], before = width, height
    for last in reversed(range(1, len(stages))):
        if not any(True for module in stages[last] for _ in module.parameters()):
            stages[last - 1] += stages.pop(last)
            channels[last - 1], strides[last - 1] = channels.pop(last), strides.pop(last)
    return nn.Sequential(*(nn.Sequential(*stage) for stage in stages)), channels, strides


@torch.no_grad()
def _shape_only(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a module gives for a tensor without values: one of the right shape; nothing is computed or moved."""
    state = {
        name: tensor.to("meta") for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers())
    }
    training = module.training
    module.eval()  # no masks are drawn
    outputs: Tensor = functional_call(module, state, (inputs,))
    module.train(training)
    return outputs


def _channels_first(maps: Tensor) -> Tensor:
    """Feature maps (B, H, W, C), as a Swin transformer has them, as (B, C, H, W)."""
    return maps.permute(0, 3, 1, 2)


def _transformer(network: VisionTransformer) -> Trunk:
    blocks = list(network.encoder.layers)
    share = -(-len(blocks) // _TRANSFORMER_STAGES)
    stages = [blocks[first : first + share] for first in range(0, len(blocks), share)]
    return Trunk(
        nn.Sequential(nn.Sequential(_Tokens(network), *stages[0]), *(nn.Sequential(*stage) for stage in stages[1:])),
        channels=[network.hidden_dim] * len(stages),
        maps=_patch_maps,
        finish=_ClassToken(network.encoder.ln),
    )


class _Tokens(nn.Module):
    """Images as tokens (B, 1 + N, D): a class token, then those of the patches; with their places added."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.image_size = network.image_size
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.pos_embedding = network.encoder.pos_embedding
        self.dropout = network.encoder.dropout

    @override
    def forward(self, images: Tensor) -> Tensor:
        size = self.image_size
        torch._assert(
            images.shape[2] == size and images.shape[3] == size,
            f"images must be of {size} by {size} pixels, got {images.shape[2]} by {images.shape[3]}",
        )
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], dim=1)
        embedded: Tensor = self.dropout(tokens + self.pos_embedding)
        return embedded


class _ClassToken(nn.Module):
    """The features of a ViT: its class token, normalised."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.norm(tokens)[:, 0]
        return features


def _patch_maps(tokens: Tensor) -> Tensor:
    """The tokens (B, 1 + N, D) of N patches, which make a square, as feature maps (B, D, H, W)."""
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], side, side)
