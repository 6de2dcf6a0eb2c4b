"""Stopping at the first loss that is not finite, with what it takes to find out why."""

import torch
from torch import Tensor, nn

from dmlkd.errors import TrainingError
from dmlkd.training.objective import Losses

_PENDING = 64  # steps after which a GPU is waited for


class FiniteLosses:
    """Watches the losses of every step; on a device that is not the CPU a look is taken every 64 steps and on demand.

    So the GPU is not waited for at each step, and no checkpoint is written of a step after a bad one.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, int, tuple[str, ...], Tensor, Tensor]] = []

    def watch(self, losses: Losses, rows: Tensor, *, step: int, epoch: int) -> None:
        """Note the losses of a step.

        Raises:
            TrainingError: as :meth:`check`.
        """
        parts = {"metric": losses.metric, **losses.distill}
        parts |= {f"{name}_teacher": loss for name, loss in losses.teachers.items()}
        values = torch.stack([losses.total, *(loss.to(losses.total) for loss in parts.values())])
        self._pending.append((step, epoch, tuple(parts), torch.isfinite(values.detach()), rows))
        if values.device.type == "cpu" or len(self._pending) >= _PENDING:
            self.check()

    def check(self) -> None:
        """Look at the steps noted since the last look.

        Raises:
            TrainingError: at the first whose loss is not finite: the step, which terms, and the batch's rows.
        """
        pending, self._pending = self._pending, []
        if not pending or bool(torch.cat([finite for _, _, _, finite, _ in pending]).all()):
            return
        for step, epoch, names, finite, rows in pending:
            if not finite.all():
                bad = [name for name, good in zip(names, finite[1:].tolist(), strict=True) if not good]
                raise TrainingError(
                    f"the loss is not finite at step {step} (epoch {epoch}): {', '.join(bad) or 'the weighted sum'}, "
                    f"of the batch of rows {', '.join(map(str, rows.tolist()))}; lower train.lr or the weight of a "
                    "distillation term; the checkpoints are from before"
                )


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
