"""A backbone without its classifier, in stages."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from dmlkd.chunks import held_statistics
from dmlkd.exits import inner_channels
from dmlkd.models.pre_activations import last_norm, run_stage


class TrunkOutputs(NamedTuple):
    """What a trunk says of B images.

    Attributes:
        stages: the feature maps of each stage, (B, C, H, W), the deepest last.
        features: (B, F) where the trunk pools by itself; None: the deepest maps are still to be pooled.
        pre_activations: (B, C, H, W) before the last ReLU of each stage; None if not asked for.
    """

    stages: tuple[Tensor, ...]
    features: Tensor | None
    pre_activations: tuple[Tensor, ...] | None = None


class Trunk(nn.Module):
    """A backbone without its classifier.

    Args:
        stages: run one after the other, shallow to deep.
        channels: C of each stage's feature maps.
        maps: makes feature maps (B, C, H, W) of what a stage gives; None: it gives them.
        finish: makes features (B, F) of what the last stage gives; None: its feature maps are still to be pooled.
        features: F; None: the last stage's C.
        strides: pixels of the image, along a side, to one of each stage's feature maps; None: nothing is said of it.
        first_exit: the shallowest stage at which an exit makes sense; those before it are but a stem.
    """

    def __init__(
        self,
        stages: nn.Sequential,
        *,
        channels: Sequence[int],
        maps: Callable[[Tensor], Tensor] | None = None,
        finish: nn.Module | None = None,
        features: int | None = None,
        strides: Sequence[int] | None = None,
        first_exit: int = 0,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.finish = finish
        self.stage_channels = tuple(channels)
        self.channels = self.stage_channels[-1] if features is None else features
        self.strides = None if strides is None else tuple(strides)
        self.first_exit = first_exit
        self._maps = maps
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

    def exit_arguments(self, stage: int) -> dict[str, int]:
        """What an exit after an inner stage is made of: channels, features, and how far maps are to be shrunk first.

        They are shrunk to twice the size of the deepest maps, so that the exit, which halves them, costs less than what
        it leaves out. Where nothing is said of strides, not at all.

        Args:
            stage: counted from 0.

        Raises:
            ValueError: if there is no such inner stage.
        """
        channels = inner_channels(self.stage_channels, stage)
        shrink = 1 if self.strides is None else max(1, self.strides[-1] // (2 * self.strides[stage]))
        return {"channels": channels, "features": self.channels, "shrink": shrink}

    def cut(self, stage: int) -> "Trunk":
        """The trunk up to a stage, with the same modules; its feature maps are still to be pooled.

        Args:
            stage: the last that is left, counted from 0.
        """
        end = stage + 1
        return Trunk(self.stages[:end], channels=self.stage_channels[:end], maps=self._maps, first_exit=self.first_exit)

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

    def forward(self, images: Tensor, *, pre_activations: bool = False) -> TrunkOutputs:
        """Return the feature maps of each stage, and the features of a trunk that pools by itself.

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
            outputs.append(images if self._maps is None else self._maps(images))
        features = None if self.finish is None else self.finish(images)
        return TrunkOutputs(tuple(outputs), features, tuple(before) if pre_activations else None)


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
