"""Watching a run while it goes: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from datetime import timedelta
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

from dmlkd.signals import Batch
from dmlkd.training.module import EmbeddingModule

_REFRESH = 0.5  # seconds between two looks at the losses: each waits for the GPU


class Pace:
    """How fast a run goes: since this process began, validation included; and since the epoch began, without it."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._steps = 0
        self.start_epoch()

    def start_epoch(self) -> None:
        """An epoch begins, or is gone on with."""
        self._epoch_began = time.perf_counter()
        self._last_step = self._epoch_began
        self._images = 0

    def step(self, images: int) -> None:
        """A step over so many images is done."""
        self._steps += 1
        self._images += images
        self._last_step = time.perf_counter()

    @property
    def images_per_second(self) -> float:
        """In this epoch's steps."""
        return self._images / max(self._last_step - self._epoch_began, 1e-9)

    @property
    def epoch_seconds(self) -> float:
        """Since the epoch began."""
        return time.perf_counter() - self._epoch_began

    def left(self, steps: int) -> str:
        """The time that so many further steps will take, as hours:minutes:seconds."""
        seconds = (time.perf_counter() - self._began) / max(self._steps, 1) * steps
        return str(timedelta(seconds=round(seconds)))


def _steps_left(trainer: Trainer) -> int:
    assert trainer.max_epochs is not None
    batches = int(trainer.num_training_batches)
    return max(0, (trainer.max_epochs - trainer.current_epoch) * batches - trainer.fit_loop.epoch_loop.batch_idx - 1)


def _shown(module: LightningModule) -> dict[str, float]:
    assert isinstance(module, EmbeddingModule)
    return {name: value for name, value in module.epoch_values().items() if not name.startswith("weight/")}


class PlainProgress(Callback):
    """One line an epoch on standard error: losses, validation scores, seconds, images a second, time left."""

    def __init__(self) -> None:
        self._pace = Pace()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace = Pace()  # an epoch that is resumed does not start again

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.start_epoch()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._pace.step(len(batch.labels) * trainer.world_size)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in _shown(pl_module).items())
        if not trainer.is_global_zero:
            return
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {values}  {self._pace.epoch_seconds:.1f} s  "
            f"{self._pace.images_per_second:.0f} images/s  {self._pace.left(_steps_left(trainer))} left",
            file=sys.stderr,
        )


class Bar(RichProgressBar):
    """Lightning's bar of epoch, steps a second and time left in it; images a second, time left in all, the losses."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self._pace = Pace()
        self._looked = 0.0
        self._values: dict[str, Any] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace = Pace()
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.start_epoch()
        super().on_train_epoch_start(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._pace.step(len(batch.labels) * trainer.world_size)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        if time.perf_counter() - self._looked >= _REFRESH or trainer.is_last_batch:
            self._looked = time.perf_counter()
            speed = {
                "images/s": f"{self._pace.images_per_second:.0f}",
                "all left": self._pace.left(_steps_left(trainer)),
            }
            self._values = speed | _shown(pl_module)
        return self._values


def progress() -> Callback:
    """A progress bar if standard output is a terminal, else plain lines."""
    return Bar() if sys.stdout.isatty() else PlainProgress()
