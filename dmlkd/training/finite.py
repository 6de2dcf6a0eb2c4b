"""Stopping at the first loss or gradient that is not finite, with what it takes to find out why."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmlkd.errors import TrainingError
from dmlkd.training.objective import Losses

_PENDING = 64  # steps after which a GPU is waited for
_SUM = "the weighted sum"


class Step(NamedTuple):
    """Which step, with which images.

    Attributes:
        number: counted from 0 over the run.
        epoch: counted from 0.
        rows: (B,) rows of the batch.
    """

    number: int
    epoch: int
    rows: Tensor

    def fault(self, what: str) -> str:
        """Says that something was not finite in it: "loss: metric" or "gradient", say."""
        kind, _, which = what.partition(": ")
        return (
            f"the {kind} is not finite at step {self.number} (epoch {self.epoch}): {which or 'every loss is'}, of the "
            f"batch of rows {', '.join(map(str, self.rows.tolist()))}; lower train.lr or the weight of a distillation "
            "term; the checkpoints are from before"
        )


def finite_losses(losses: Losses) -> tuple[tuple[str, ...], Tensor]:
    """The names of the losses of a step and which of them are finite, (n,) bool; their weighted sum is the last."""
    parts = {"metric": losses.metric, **losses.distill}
    parts |= {f"{name}_teacher": loss for name, loss in losses.teachers.items()}
    values = [*(loss.to(losses.total) for loss in parts.values()), losses.total]
    return (*parts, _SUM), torch.isfinite(torch.stack(values).detach())


def named_losses(names: tuple[str, ...], finite: Tensor) -> str:
    """Which losses are not finite: "loss: metric, lsd", say; empty if all are."""
    bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
    return f"loss: {', '.join(bad[:-1] or bad)}" if bad else ""


def finite_gradient(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Whether the norm of the gradient of all parameters is finite, () bool, on their device.

    In float32 it is not from 1.8e19 on: squared, as Adam does, such a gradient is not finite either.
    """
    return torch.isfinite(torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None))


class FiniteLosses:
    """Watches losses and gradient of every step.

    On a device that is not the CPU a look is taken every 64 steps and on demand. So the GPU is not waited for at each
    step, and no checkpoint is written of a step after a bad one.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Step, tuple[str, ...], Tensor]] = []
        self._step: Step | None = None

    def watch(self, losses: Losses, step: Step) -> None:
        """Note the losses of a step.

        Raises:
            TrainingError: as :meth:`check`.
        """
        self._step = step
        self._note(*finite_losses(losses))

    def watch_gradient(self, parameters: Iterable[nn.Parameter]) -> None:
        """Note the gradient of the step whose losses were noted last.

        Raises:
            TrainingError: as :meth:`check`.
        """
        if self._step is not None:
            self._note((), finite_gradient(parameters))

    def _note(self, names: tuple[str, ...], finite: Tensor) -> None:
        assert self._step is not None
        self._pending.append((self._step, names, finite))
        if finite.device.type == "cpu" or len(self._pending) >= 2 * _PENDING:
            self.check()

    def check(self) -> None:
        """Look at the steps noted since the last look.

        Raises:
            TrainingError: at the first that is not finite: the step, which losses or the gradient, the batch's rows.
        """
        pending, self._pending = self._pending, []
        if not pending or bool(torch.cat([finite.reshape(-1) for _, _, finite in pending]).all()):
            return
        for step, names, finite in pending:
            if not finite.all():
                raise TrainingError(step.fault(named_losses(names, finite) if names else "gradient"))


def check_weights(model: nn.Module, objective: nn.Module, *, step: int) -> None:
    """Refuse weights, and buffers of the model, that are not finite, before they are written over good ones.

    Raises:
        TrainingError: naming the first few.
    """
    held = [*model.named_parameters(), *model.named_buffers(), *objective.named_parameters()]
    named = {name: value for name, value in held if value.is_floating_point()}
    if not named or bool(torch.stack([torch.isfinite(value).all() for value in named.values()]).all()):
        return
    bad = [name for name, value in named.items() if not torch.isfinite(value).all()]
    raise TrainingError(
        f"{len(bad)} weights are not finite after step {step}, such as {bad[0]}; lower train.lr or the weight of a "
        "distillation term; the checkpoints are from before"
    )
