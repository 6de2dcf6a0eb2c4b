"""The data of a training run as a Lightning data module."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader
from typing_extensions import override

from dmlkd.config import TrainConfig
from dmlkd.data import BatchShare, DataSplits, EpochBatchSampler
from dmlkd.data.loading import loader
from dmlkd.signals import Batch
from dmlkd.training.building_data import build_sampler
from dmlkd.training.processes import Processes


class EmbeddingData(LightningDataModule):
    """Class-balanced training batches and validation batches, and what is done to them once they are on the device.

    For any Lightning Trainer, whose ``use_distributed_sampler`` must be False, with an
    :class:`~dmlkd.training.module.EmbeddingModule`. Its place in the epoch is in the Trainer's checkpoints.

    Args:
        data: training and validation images; without validation there is no validation loader.
        train: batches, seed of the sampler, memory format; None: the defaults.
        sampler: which images make up a training batch; None: as ``train`` says.
        workers: processes that load images; 0: this one.

    Raises:
        ConfigError: if the batch is not a multiple of the images a class.
        DataError: if there are fewer classes than a batch needs.
    """

    def __init__(
        self,
        data: DataSplits,
        train: TrainConfig | None = None,
        *,
        sampler: EpochBatchSampler | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        train = train or TrainConfig()
        self._data = data
        self._sampler = sampler or build_sampler(data.train.targets, train, rows=data.trained)
        self._train = loader(data.train, batch_sampler=self._sampler, workers=workers, persistent=True)
        self._batch_size = train.batch_size
        self._memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
        self._workers = workers

    @override
    def state_dict(self) -> dict[str, int]:
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.trainer.is_last_batch:
            return {"epoch": self.trainer.current_epoch + 1, "batches": 0}
        return {"epoch": self.trainer.current_epoch, "batches": done}

    @override
    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._sampler.resume(state_dict["epoch"], state_dict["batches"])

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        return self._train

    @override
    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if self._data.val is None:
            return []
        processes = Processes.now()
        batches = BatchShare(
            len(self._data.val), batch_size=self._batch_size, num_replicas=processes.size, rank=processes.rank
        )
        return loader(self._data.val, batch_sampler=batches, workers=self._workers, persistent=True)

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        training = self.trainer is not None and self.trainer.training
        images = batch.images
        if self._data.on_device is not None and training:
            images = self._data.on_device(images)
        return batch._replace(images=images.contiguous(memory_format=self._memory_format))
