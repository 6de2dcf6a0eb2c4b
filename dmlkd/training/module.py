"""The Lightning module: a model and an objective in Lightning's training loop."""

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from dmlkd.retrieval import evaluate
from dmlkd.signals import Batch
from dmlkd.training.finite import FiniteLosses
from dmlkd.training.means import Means
from dmlkd.training.objective import Losses, Objective

VALIDATION_METRICS = ("recall@1", "map@r")


class EmbeddingModule(lightning.LightningModule):
    """Trains a model with an objective, and measures retrieval on the validation split after each epoch.

    Logs per epoch: ``train/loss``, ``train/metric``, ``train/NAME`` and ``weight/NAME`` of each distillation term,
    ``train/NAME_teacher`` where its teacher is itself trained, ``val/recall@1`` and ``val/map@r``.

    Args:
        model: what is trained; has ``signals`` (:class:`~dmlkd.signals.SignalNetwork`).
        objective: the losses; trainable weights of the metric loss are trained with the model's.
        optimizer: makes the optimiser for the parameter groups it is given.
        epochs: for the schedules.
        metric_loss_lr: learning rate of the weights of metric losses, such as proxies; None: the optimiser's own.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        epochs: int,
        metric_loss_lr: float | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.epochs = epochs
        self.metric_loss_lr = metric_loss_lr
        self._optimizer = optimizer
        self._validated: list[tuple[Tensor, Tensor]] = []
        self._scores: dict[str, float] = {}
        self._means = Means()
        self._finite = FiniteLosses()

    @override
    def configure_optimizers(self) -> Optimizer:
        of_losses = [p for p in self.objective.loss_parameters() if p.requires_grad]
        apart = {id(p) for p in of_losses}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in apart]}
        ]
        if of_losses:
            own = {} if self.metric_loss_lr is None else {"lr": self.metric_loss_lr}
            groups.append({"params": of_losses, **own})
        return self._optimizer(groups)

    @override
    def on_train_epoch_start(self) -> None:
        self._means.clear()
        self._scores.clear()
        self.objective.start_epoch(self.model, self.current_epoch, self.epochs)

    @override
    def training_step(self, batch: Batch, _: int) -> Tensor:
        signals = self.model.signals(batch.images, self.objective.student_needs)  # type: ignore[operator]
        losses: Losses = self.objective(signals, batch)
        values: dict[str, Tensor | float] = {"train/loss": losses.total, "train/metric": losses.metric}
        values.update({f"train/{name}": loss for name, loss in losses.distill.items()})
        values.update({f"train/{name}_teacher": loss for name, loss in losses.teachers.items()})
        values.update({f"weight/{name}": weight for name, weight in losses.weights.items()})
        self._finite.watch(losses, batch.rows, step=self.global_step, epoch=self.current_epoch)
        self._means.add(values, len(batch.labels))
        return losses.total

    @override
    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.objective.after_step(self.model)

    @override
    def on_validation_epoch_start(self) -> None:
        self._finite.check()

    @override
    def validation_step(self, batch: Batch, _: int) -> None:
        self._validated.append((self.model(batch.images).cpu(), batch.labels.cpu()))

    @override
    def on_validation_epoch_end(self) -> None:
        embeddings, labels = (torch.cat(parts).numpy() for parts in zip(*self._validated, strict=True))
        self._validated.clear()
        scores = evaluate(embeddings, labels, metrics=VALIDATION_METRICS)
        self._scores = {f"val/{name}": value for name, value in scores.items()}
        self.log_dict(self._scores)

    @override
    def on_train_epoch_end(self) -> None:
        self.log_dict(self._means.values())

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
        means = {name: float(value) for name, value in self._means.values().items()}
        return dict(sorted({**means, **self._scores}.items()))
