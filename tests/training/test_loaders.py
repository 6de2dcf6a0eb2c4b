"""The data module in a Lightning Trainer of the user's own."""

import functools

import pytest
import torch
from lightning import Trainer
from torch.optim import Adam

from dmlkd.config import load_config
from dmlkd.training import EmbeddingData, EmbeddingModule
from dmlkd.training.building import build

SHORT = [
    "data.image_size=8",
    "data.transform=plain",
    "model.backbone_args.width=4",
    "train.batch_size=48",
    "data.validation=0.4",
]


def parts_of(configs, *overrides):
    config = load_config(configs / "digits.yaml", [*SHORT, *overrides])[0]
    torch.manual_seed(0)
    return config, build(config)


def trained(configs, folder, epochs: int, **fitting):
    config, parts = parts_of(configs)
    module = EmbeddingModule(parts.model, parts.objective, optimizer=functools.partial(Adam, lr=1e-3), epochs=4)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=EmbeddingData(parts.data, config.train), **fitting)
    return trainer, module


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*module.s. in eval mode")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec", "ignore:.*GPU available")
def test_it_trains_and_validates_and_its_place_is_in_the_checkpoint(configs, tmp_path):
    trainer, module = trained(configs, tmp_path, 2)
    assert {"train/loss", "val/map@r"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    whole = trained(configs, tmp_path, 4)[1]
    again = trained(configs, tmp_path, 4, ckpt_path=tmp_path / "half.ckpt", weights_only=True)[1]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert not torch.equal(whole.model.head.weight, module.model.head.weight)


def test_batches_are_class_balanced(configs):
    config, parts = parts_of(configs)
    batch = next(iter(EmbeddingData(parts.data, config.train).train_dataloader()))
    assert torch.bincount(batch.labels).unique().tolist() == [config.train.per_class]


def test_a_fold_that_is_left_out_is_not_drawn(configs):
    config, parts = parts_of(configs, "data.image_folds=2", "data.image_fold=0")
    drawn = {int(row) for batch in EmbeddingData(parts.data, config.train).train_dataloader() for row in batch.rows}
    assert drawn
    assert drawn <= set(parts.data.trained)
    assert not drawn & set(parts.data.left_out)


def test_without_validation_classes_there_is_no_validation(configs):
    config, parts = parts_of(configs, "data.validation=0")
    assert EmbeddingData(parts.data, config.train).val_dataloader() == []
