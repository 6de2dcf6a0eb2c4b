"""Ending a run whose validation scores rise no more."""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from typing_extensions import override


class EarlyStop(EarlyStopping):
    """Lightning's ``EarlyStopping``; a run that had ended stays so when it is resumed.

    Args:
        monitor: what is to rise.
        epochs: so many epochs after one another without a new best end the run.
    """

    def __init__(self, monitor: str, epochs: int) -> None:
        super().__init__(monitor, mode="max", patience=epochs, check_on_train_epoch_end=False)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
