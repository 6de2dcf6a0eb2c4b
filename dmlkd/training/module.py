"""The Lightning module: a model and an objective in Lightning's training loop."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from dmlkd.chunks import signals_in_chunks
from dmlkd.distill import MovingAverageTeacher
from dmlkd.errors import TrainingError
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.distributed import gather_rows
from dmlkd.signals import Batch, Signals
from dmlkd.training.finite import FiniteLosses, Step
from dmlkd.training.gathering import average_statistics, gather, same_randomness
from dmlkd.training.means import Means
from dmlkd.training.objective import Losses, Objective
from dmlkd.training.processes import Processes
from dmlkd.training.rates import WaitingTrunk, parameter_groups
from dmlkd.training.skipping import Skips

VALIDATION_METRICS = ("recall@1", "map@r")
MODEL, AVERAGED = "model.", "average.network.module."  # before the names of weights in a checkpoint


class EmbeddingModule(lightning.LightningModule):
    """Trains a model with an objective, and measures retrieval on the validation split after each epoch.

    Logs per epoch: ``train/loss``, ``train/metric``, ``train/NAME`` and ``weight/NAME`` of each distillation term,
    ``train/NAME_teacher`` where its teacher is itself trained, ``val/recall@1`` and ``val/map@r``.

    Where torch.distributed has several processes, each runs on its share of every batch, and the losses are those of
    the whole batch (:func:`dmlkd.training.gathering.gather`).

    Args:
        model: what is trained; has ``signals`` (:class:`~dmlkd.signals.SignalNetwork`).
        objective: the losses; trainable weights of the metric loss are trained with the model's.
        optimizer: makes the optimiser for the parameter groups it is given.
        epochs: for the schedules.
        metric_loss_lr: learning rate of the weights of metric losses, such as proxies; None: the optimiser's own.
        trunk_lr: learning rate of ``model.trunk``; None: the optimiser's own.
        lr_schedule: makes the schedule of all learning rates, stepped once an epoch; None: they are constant.
        head_only_epochs: in the first so many epochs ``model.trunk`` is left as it is: eval mode, no gradient.
        chunk_size: how many images the model runs on at a time (:func:`~dmlkd.chunks.signals_in_chunks`); None: the
            whole batch. Teachers have a ``chunk_size`` of their own.
        skip_non_finite: so many steps whose loss or gradient is not finite are passed over before one is an error.
        ema_decay: validate with the moving average of the model's weights and buffers over the steps, of this decay,
            instead of with the model; None: there is none.
        seed: of what several processes draw alike.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        epochs: int,
        metric_loss_lr: float | None = None,
        trunk_lr: float | None = None,
        lr_schedule: Callable[[Optimizer], LRScheduler] | None = None,
        head_only_epochs: int = 0,
        chunk_size: int | None = None,
        skip_non_finite: int = 0,
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.epochs = epochs
        self.metric_loss_lr = metric_loss_lr
        self.trunk_lr = trunk_lr
        self.chunk_size = chunk_size
        self.seed = seed
        self._optimizer = optimizer
        self._lr_schedule = lr_schedule
        self._waiting = WaitingTrunk(self._trunk(), head_only_epochs) if head_only_epochs else None
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []
        self._scores: dict[str, float] = {}
        self._means = Means()
        self._finite = FiniteLosses()
        self.skips = Skips(skip_non_finite, self._agreed) if skip_non_finite else None
        self.average = None if ema_decay is None else MovingAverageTeacher(model, decay=ema_decay)
        # Buffers are alike in all processes already: batch norm's are averaged, memories written alike.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        apart: list[tuple[Iterable[nn.Parameter], float | None]] = [
            (self.objective.loss_parameters(), self.metric_loss_lr)
        ]
        if self.trunk_lr is not None:
            apart.append((self._trunk().parameters(), self.trunk_lr))
        optimizer = self._optimizer(parameter_groups(self.parameters(), apart))
        if self._lr_schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._lr_schedule(optimizer), "interval": "epoch"},
        }

    @override
    def on_train_epoch_start(self) -> None:
        self._means.clear()
        self._scores.clear()
        if self._waiting is not None:
            self._waiting.start_epoch(self.current_epoch)
        self.objective.start_epoch(self.model, self.current_epoch, self.epochs)

    @override
    def on_train_start(self) -> None:
        if self._waiting is not None:  # a run resumed within an epoch has no start of that epoch
            self._waiting.start_epoch(self.current_epoch)

    @override
    def on_fit_end(self) -> None:
        if self._waiting is not None:
            self._waiting.end()

    @override
    def training_step(self, batch: Batch, _: int) -> Tensor:
        step = Step(self.global_step, self.current_epoch, batch.rows)
        if self.skips is not None:
            self.skips.begin(self.model, step)
        signals = signals_in_chunks(self.model, batch.images, self.objective.student_needs, size=self.chunk_size)
        if self.skips is not None and not self.skips.look_at_embeddings(signals.embeddings):
            return signals.embeddings.sum()
        if Processes.now().several:
            signals, batch = gather(signals, batch, self.objective.student_needs)
            step = step._replace(rows=batch.rows)
        losses = self._losses(signals, batch, step)
        if self.skips is not None and not self.skips.look_at_losses(losses):
            return losses.total
        values: dict[str, Tensor | float] = {"train/loss": losses.total, "train/metric": losses.metric}
        values.update({f"train/{name}": loss for name, loss in losses.distill.items()})
        values.update({f"train/{name}_teacher": loss for name, loss in losses.teachers.items()})
        values.update({f"weight/{name}": weight for name, weight in losses.weights.items()})
        if self._lr_schedule is not None:
            values["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self.skips is None:
            self._finite.watch(losses, step)
        self._means.add(values, len(batch.labels))
        return losses.total

    def _losses(self, signals: Signals, batch: Batch, step: Step) -> Losses:
        """The losses of the batch; of the whole of it, where several processes have joined their shares."""
        several = Processes.now().several
        try:
            with same_randomness(self.seed, self.global_step) if several else nullcontext():
                losses: Losses = self.objective(signals, batch)
        except (RuntimeError, ValueError, IndexError) as error:
            if torch.isfinite(signals.embeddings.detach()).all():
                raise
            raise TrainingError(step.fault("loss: embeddings")) from error  # miners stop at distances that are NaN
        return losses

    @override
    def on_after_backward(self) -> None:
        if Processes.now().several:
            average_statistics(self)

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:  # which leaves such steps out by itself
            if self.skips is None:
                self._finite.watch_gradient(self.parameters())
            elif not self.skips.skipping:
                self.skips.look_at_gradient(self.parameters())
        if self.skips is not None and self.skips.skipping:
            self.skips.take_back()
            optimizer.zero_grad()  # without gradients the step of any optimiser is none

    @override
    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        if self.skips is None or not self.skips.skipping:
            self.objective.after_step(self.model)
            if self.average is not None:
                self.average.after_step(self.model)
        if self.trainer.is_last_batch:
            self.objective.end_epoch(self.model)

    def _agreed(self, good: bool) -> bool:
        return bool(self.trainer.strategy.reduce_boolean_decision(good, all=True))

    @property
    def measured(self) -> nn.Module:
        """What validation measures and a finished run keeps: the model, or the average of its weights."""
        return self.model if self.average is None or not self.average.ready else self.average.averaged

    @override
    def on_validation_epoch_start(self) -> None:
        self._finite.check()

    @override
    def validation_step(self, batch: Batch, _: int) -> None:
        self._validated.append((self.measured(batch.images).cpu(), batch.labels.cpu(), batch.rows.cpu()))

    @override
    def on_validation_epoch_end(self) -> None:
        embeddings, labels, rows = (torch.cat(parts) for parts in zip(*self._validated, strict=True))
        self._validated.clear()
        processes = Processes.now()
        if processes.several:
            embeddings, labels, _ = gather_rows(embeddings, labels, rows)
        scores = evaluate(embeddings.numpy(), labels.numpy(), metrics=VALIDATION_METRICS, group=processes.group)
        self._scores = {f"val/{name}": value for name, value in scores.items()}
        self.log_dict(self._scores)

    @override
    def on_train_epoch_end(self) -> None:
        self.log_dict(self._means.values())

    def _trunk(self) -> nn.Module:
        trunk = getattr(self.model, "trunk", None)
        if not isinstance(trunk, nn.Module):
            raise ValueError(
                f"trunk_lr and head_only_epochs need a model with a trunk, got {type(self.model).__name__}"
            )
        return trunk

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._finite.check()
        checkpoint["means"] = self._means.state_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._means.load_state_dict(checkpoint["means"])

    def epoch_values(self) -> dict[str, float]:
        """What was logged in this epoch, sorted by name: means over its images so far, scores if it was validated."""
        self._finite.check()
        values = {name: float(value) for name, value in self._means.values().items()} | self._scores
        if self.skips is not None:
            values["train/skipped_steps"] = float(len(self.skips.record))
        return dict(sorted(values.items()))
