"""What can go wrong in a step: it is said in one line, or the step leaves no trace but a record."""

import copy
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback

from dmlkd.config import TrainConfig, load_config
from dmlkd.errors import TrainingError, UserError
from dmlkd.training import fit, resume, run
from dmlkd.training.building import build
from dmlkd.training.checkpoints import CheckpointFiles, checkpoint_size
from dmlkd.training.faults import clear_faults
from dmlkd.training.finite import FiniteLosses, Step, finite_gradient
from dmlkd.training.loaders import EmbeddingData
from dmlkd.training.module import EmbeddingModule
from dmlkd.training.objective import Losses, Objective

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.epochs=2",
    "train.batch_size=48",
    "data.validation=0.4",
    "data.image_size=8",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1]",
]
MEMORIES = [
    "distill.0.teacher=remembered",
    "metric_loss={name: CrossBatchMemory, memory_size: 100, loss: {name: ContrastiveLoss}}",
    "miner=null",
]


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]


def trained(config, out: Path, *callbacks: Callback):
    torch.manual_seed(0)
    parts = build(config)
    out.mkdir()
    return fit(parts.model, parts.objective, parts.data, config.train, out=out, callbacks=callbacks, quiet=True)


def spoil(monkeypatch, kind: str, *steps: int) -> None:
    """Make something not finite at some steps: the images, a loss, or the gradient alone."""
    if kind == "embeddings":
        transfer = EmbeddingData.on_after_batch_transfer

        def spoiled_images(self, batch, dataloader_idx):
            batch = transfer(self, batch, dataloader_idx)
            bad = self.trainer.training and self.trainer.global_step in steps
            return batch._replace(images=batch.images * torch.nan) if bad else batch

        monkeypatch.setattr(EmbeddingData, "on_after_batch_transfer", spoiled_images)
        return
    forward, seen = Objective.forward, []

    def spoiled_losses(self, student, batch):
        losses = forward(self, student, batch)
        seen.append(1)
        if len(seen) - 1 not in steps:
            return losses
        if kind == "loss":
            return losses._replace(metric=losses.metric * torch.inf, total=losses.total * torch.inf)
        return losses._replace(total=losses.total + (0 * student.embeddings.sum()).sqrt())

    monkeypatch.setattr(Objective, "forward", spoiled_losses)


class States(Callback):
    """Everything that a step could change, before and after each step."""

    def __init__(self) -> None:
        self.before: list[dict] = []
        self.after: list[dict] = []

    def _state(self, trainer, module):
        return copy.deepcopy({"module": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before.append(self._state(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(self._state(trainer, pl_module))


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return bool(first == second)


def test_a_gradient_that_is_not_finite_is_found_in_its_step(monkeypatch, tmp_path):
    spoil(monkeypatch, "gradient", 3)
    with pytest.raises(
        TrainingError,
        match=r"the gradient is not finite at step 3 \(epoch 0\): every loss is, of the batch of rows \d+, ",
    ):
        trained(configured(), tmp_path / "run")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_entry_that_is_not_finite_makes_the_gradient_so(bad):
    parameters = [
        torch.nn.Parameter(torch.zeros(5)),
        torch.nn.Parameter(torch.zeros(3, 3)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    assert finite_gradient(parameters)  # none has a gradient
    parameters[0].grad, parameters[1].grad = torch.ones(5), torch.full((3, 3), 1e18)
    assert finite_gradient(parameters)
    parameters[1].grad[2, 2] = bad
    assert not finite_gradient(parameters)


def test_a_device_is_waited_for_once_in_64_steps(monkeypatch):
    watch, looks = FiniteLosses(), []
    value = torch.ones(2, device="meta")
    losses = Losses(value.sum(), value[0], {"lsd": value[1]}, {}, {"lsd": 1.0})
    monkeypatch.setattr(FiniteLosses, "check", lambda self: (looks.append(len(self._pending)), self._pending.clear()))
    parameter = torch.nn.Parameter(value)
    parameter.grad = value
    for number in range(130):
        watch.watch(losses, Step(number, 0, torch.arange(2)))
        watch.watch_gradient([parameter])
    assert looks == [128, 128]


def test_a_miner_that_fails_at_bad_embeddings_is_told_as_what_it_is(monkeypatch, tmp_path):
    spoil(monkeypatch, "embeddings", 2)
    config = configured("miner=DistanceWeightedMiner", "metric_loss=TripletMarginLoss")

    def forward(self, student, batch):
        if not torch.isfinite(student.embeddings).all():
            raise RuntimeError("probability tensor contains either inf, nan or element < 0")
        return plainly(self, student, batch)

    plainly = Objective.forward
    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(TrainingError, match=r"the loss is not finite at step 2 \(epoch 0\): embeddings, of the batch"):
        trained(config, tmp_path / "run")


@pytest.mark.parametrize("kind", ["embeddings", "loss", "gradient"])
def test_a_skipped_step_leaves_weights_statistics_and_optimiser_as_they_were(monkeypatch, tmp_path, kind):
    spoil(monkeypatch, kind, 3)
    states = States()
    result = trained(configured("train.skip_non_finite=1", "train.ema_decay=0.9"), tmp_path / "run", states)
    assert same(states.before[3], states.after[3])
    assert not same(states.before[4], states.after[4])
    assert [row["train/skipped_steps"] for row in result.history] == [1, 1]
    with (tmp_path / "run" / "non_finite.csv").open() as file:
        (row,) = csv.DictReader(file)
    name = {"embeddings": "loss: embeddings", "loss": "loss: metric", "gradient": "gradient"}[kind]
    assert (row["step"], row["epoch"], row["not_finite"]) == ("3", "0", name)
    assert len(row["rows"].split()) == 48


def test_memories_take_in_nothing_of_a_skipped_step(monkeypatch, tmp_path):
    spoil(monkeypatch, "embeddings", 3, 9)
    states = States()
    trained(configured("train.skip_non_finite=2", "distill.0.schedule=constant", *MEMORIES), tmp_path / "run", states)
    assert same(states.before[3], states.after[3])
    assert same(states.before[9], states.after[9])
    memory = "objective.teachers.0.memory.values"
    assert not same(states.before[4]["module"][memory], states.after[4]["module"][memory])


def test_nothing_is_written_where_nothing_was_skipped(tmp_path):
    plain = trained(configured(), tmp_path / "plain")
    result = trained(configured("train.skip_non_finite=3"), tmp_path / "run")
    assert not (tmp_path / "run" / "non_finite.csv").exists()
    assert [{**row, "train/skipped_steps": 0} for row in plain.history] == result.history


def test_one_bad_step_too_many_is_the_error(monkeypatch, tmp_path):
    spoil(monkeypatch, "loss", 3, 5)
    with pytest.raises(
        TrainingError,
        match=r"the loss is not finite at step 5 \(epoch 0\): metric, .*, and 1 bad steps before it were skipped",
    ):
        trained(configured("train.skip_non_finite=1"), tmp_path / "run")


def test_a_run_killed_after_a_skipped_step_ends_with_the_same_bits(monkeypatch, tmp_path):
    config = configured("train.skip_non_finite=2", "train.checkpoint_every_steps=2", *MEMORIES)
    spoil(monkeypatch, "embeddings", 2, 8)
    whole = run(config, tmp_path / "whole", quiet=True).folder
    save, saved = CheckpointFiles.save_checkpoint, []

    def dying(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        saved.append(path)
        if len(saved) == 2:
            raise KeyError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFiles, "save_checkpoint", dying)
        with pytest.raises(KeyError):
            run(config, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "non_finite.csv").write_text("of a later step\n")
    folder = resume(tmp_path / "run", quiet=True).folder
    for name in ("metrics.json", "log.csv", "non_finite.csv", "model/model.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (
            [],
            r"a batch of 48 images; set train.chunk_size=12 .*, or train.checkpoint_trunk=true, or train.precision=bf",
        ),
        (["train.chunk_size=8", "train.checkpoint_trunk=true"], r"48 images in chunks of 8; set train.chunk_size=2 "),
        (
            ["train.chunk_size=1", "train.precision=bf16-mixed"],
            r"in chunks of 1; set train.checkpoint_trunk=true, or a sm",
        ),
    ],
)
def test_too_little_memory_says_what_to_set(monkeypatch, tmp_path, overrides, advice):
    config = configured(*overrides)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")

    monkeypatch.setattr("dmlkd.models.EmbeddingModel.signals", full)
    with pytest.raises(TrainingError, match=advice) as caught:
        trained(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_too_little_memory_of_a_cpu_is_told_too():
    with pytest.raises(TrainingError, match="memory is not enough"), clear_faults(TrainConfig()):
        torch.empty(2**60)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shape"), clear_faults(TrainConfig(compile=True)):
        raise RuntimeError("shape")


NO_COMPILER = """
import sys, torch
from pathlib import Path
from dmlkd.config import load_config
from dmlkd.training import run
torch._inductor.config.cpp.cxx = (None, "no-such-compiler")
run(load_config(Path("configs/digits.yaml"), sys.argv[2:])[0], Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_line(tmp_path):
    command = [sys.executable, "-c", NO_COMPILER, tmp_path / "run", *SHORT, "train.compile=true"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "TrainingError: train.compile: the backbone cannot be compiled here: InvalidCxxCompiler: " in last
    assert last.endswith("leave train.compile out, or install what is missing (on a CPU a C++ compiler such as g++)")


def test_too_little_space_for_the_checkpoints_is_said_before_training(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=400))
    monkeypatch.setattr(EmbeddingModule, "training_step", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(
        UserError, match="has 0 MiB of space left, and the checkpoints of this training take about 1 MiB"
    ):
        trained(configured(), tmp_path / "run")


def test_the_size_of_a_checkpoint_is_known_before_it_is_written(tmp_path):
    config = configured("train.epochs=1", "data.validation=0", "model.backbone_args.width=64", "train.ema_decay=0.9")
    parts = build(config)
    module = EmbeddingModule(parts.model, parts.objective, optimizer=lambda groups: None, epochs=1, ema_decay=0.9)
    expected = checkpoint_size(module)
    trained(config, tmp_path / "run")
    written = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size
    assert 0.9 * written < expected < 1.1 * written


def test_a_folder_that_is_not_there_is_said_before_training(tmp_path):
    config = configured()
    parts = build(config)
    with pytest.raises(UserError, match="nowhere is no folder, so a training cannot be written there"):
        fit(parts.model, parts.objective, parts.data, config.train, out=tmp_path / "nowhere")
