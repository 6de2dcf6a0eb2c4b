"""Passing over a few steps whose loss or gradient is not finite, leaving no trace of them but a record."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from dmlkd.errors import TrainingError
from dmlkd.files import write_csv
from dmlkd.training.finite import Step, finite_gradient, finite_losses, named_losses
from dmlkd.training.objective import Losses


class Skips:
    """Looks at each step as it goes, and takes it back if something in it is not finite.

    A step is looked at three times: its embeddings, before miner, losses and teachers see them; its losses; its
    gradient. On a GPU each look waits for it. What the step has done by then is undone: the network's buffers, such as
    batch norm's statistics, are put back, the gradient is dropped. Teachers and memories see finite embeddings only.

    Args:
        limit: at most so many steps of a run are passed over.
        agreed: makes one decision of those of all processes: whether a step is good in each.

    Attributes:
        record: of each step passed over: number, epoch, what was not finite, rows.
    """

    def __init__(self, limit: int, agreed: Callable[[bool], bool] = bool) -> None:
        self.limit = limit
        self.agreed = agreed
        self.record: list[dict[str, Any]] = []
        self._step: Step | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._found = ""

    @property
    def skipping(self) -> bool:
        """Whether something in the step at hand is not finite."""
        return bool(self._found)

    def begin(self, network: nn.Module, step: Step) -> None:
        """A step begins."""
        self._step, self._found = step, ""
        self._buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]

    def look_at_embeddings(self, embeddings: Tensor) -> bool:
        """Whether they are finite."""
        return self._look("" if torch.isfinite(embeddings.detach()).all() else "loss: embeddings")

    def look_at_losses(self, losses: Losses) -> bool:
        """Whether they are finite."""
        return self._look(named_losses(*finite_losses(losses)))

    def look_at_gradient(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether it is finite."""
        return self._look("" if finite_gradient(parameters) else "gradient")

    def _look(self, found: str) -> bool:
        if not self.agreed(not found):
            self._found = self._found or found or "loss: of another process"
        return not self._found

    def take_back(self) -> None:
        """Undo what the step did to the network's buffers, and record it.

        Raises:
            TrainingError: if so many were passed over already.
        """
        assert self._step is not None
        if len(self.record) >= self.limit:
            raise TrainingError(f"{self._step.fault(self._found)}, and {self.limit} bad steps before it were skipped")
        for buffer, before in self._buffers:
            buffer.copy_(before)
        rows = " ".join(map(str, self._step.rows.tolist()))
        entry = {"step": self._step.number, "epoch": self._step.epoch, "not_finite": self._found, "rows": rows}
        self.record.append(entry)


class SkippedSteps(Callback):
    """Writes what was passed over to a CSV file; there is none as long as nothing was.

    Args:
        skips: of the module in training.
        path: of the file.
    """

    def __init__(self, skips: Skips, path: Path) -> None:
        self._skips = skips
        self._path = path
        self._written = 0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"record": self._skips.record}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._skips.record = list(state_dict["record"])
        self._path.unlink(missing_ok=True)  # of steps after the checkpoint, which are done again

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if len(self._skips.record) != self._written and trainer.is_global_zero:
            write_csv(self._path, self._skips.record)
            self._written = len(self._skips.record)
