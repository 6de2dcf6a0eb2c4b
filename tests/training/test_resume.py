"""A run that was stopped, killed or ran out of disk goes on to the bits of the unbroken run."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlkd.config import load_config
from dmlkd.errors import DataError, Interrupted, TrainingError, UserError
from dmlkd.training import resume, run, running
from dmlkd.training.checkpoints import CheckpointFiles, Randomness, read_checkpoint
from dmlkd.training.finite import FiniteLosses, Step, check_weights
from dmlkd.training.folder import held
from dmlkd.training.means import Means
from dmlkd.training.module import EmbeddingModule
from dmlkd.training.objective import Losses

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.epochs=2",
    "train.batch_size=48",
    "train.checkpoint_every_steps=2",
    "data.validation=0.4",
    "data.image_size=8",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1, map@r]",
]
KINDS = {
    "previous epoch, augmented": ["distill.0.schedule=constant"],
    "two workers": ["data.workers=2"],
    "moving average, miner that draws": [
        "distill.0.teacher={name: moving_average, decay: 0.9}",
        "metric_loss=TripletMarginLoss",
        "miner=DistanceWeightedMiner",
    ],
    "memory and queue": [
        "distill.0.teacher=remembered",
        "metric_loss={name: CrossBatchMemory, memory_size: 100, loss: {name: ContrastiveLoss}}",
        "miner=null",
    ],
    "wider heads, proxies, no validation": [
        "distill=[{name: s2sd, weight: 100, teacher: {name: wider_heads, dims: [96], features_after: 5}}]",
        "metric_loss=ProxyAnchorLoss",
        "miner=null",
        "data.validation=0",
        "train.optimizer=sgd",
    ],
    "head alone, cosine, chunks": [
        "train.head_only_epochs=2",
        "train.lr_schedule=cosine",
        "train.chunk_size=20",
    ],
    "class scores of an auxiliary head, partners": [
        "distill=[{name: cs_kd, weight: 1}, {name: posterior, weight: 1}]",
    ],
    "remembered posteriors, evidence, drawn smoothing": [
        "distill=[{name: ps_kd, weight: 1}, {name: bsd, weight: 1, teacher: {name: evidence, top_k: 2}}, "
        "{name: beta_smoothing, weight: 1, teacher: {name: moving_average, decay: 0.9}}]",
        "metric_loss=NormalizedSoftmaxLoss",
        "miner=null",
        "metric_weight=0",
    ],
    "k posteriors kept, mapped, drawn with replacement": [
        "distill=[{name: ps_kd, weight: 1, teacher: {name: remembered_posterior, top_k: 2, mapped_above: 0}}]",
        "train.sampler=published",
    ],
    "class scores of a loss, learned labels, class geometry, drawn masks, an adversary": [
        "metric_loss={name: NormalizedSoftmaxLoss, temperature: 0.1}",
        "miner=null",
        "distill=[{name: adaptive_labels, weight: 1}, {name: skd, weight: 1}, {name: sd_dropout, weight: 1}, "
        "{name: adversary, weight: 0.1, teacher: previous_epoch}, {name: ps_kd, weight: 1}]",
    ],
    "lower exit in its second phase, subclasses": [
        "distill=[{name: ambiguity, weight: 1, schedule: after}, {name: subclass_spread, weight: 1}]",
        "classes={subclasses: 2}",
    ],
    "deep stage, smoothing by accuracy": [
        "distill=[{name: sfr, weight: 1, stage: 0}, {name: dynamic_smoothing, weight: 1, epsilon: 0.5}]",
        "data.image_size=16",
    ],
    "exits with proxies of their own, averaged weights": [
        "distill=[{name: byot, weight: 1}, {name: byot_posterior, weight: 0.5}]",
        "metric_loss={name: NormalizedSoftmaxLoss, temperature: 0.1}",
        "miner=null",
        "train.ema_decay=0.8",
    ],
    "embeddings held, selectively too, with class scores of a loss": [
        "distill=[{name: sril, weight: 1, teacher: previous_epoch}, "
        "{name: embedding, weight: 1, teacher: previous_epoch}]",
        "metric_loss=NormalizedSoftmaxLoss",
        "miner=null",
    ],
    "averaged weights, early stopping, stages again": [
        "train.ema_decay=0.8",
        "train.early_stop_epochs=1",
        "train.checkpoint_trunk=true",
    ],
    "views, a queue of keys, features before the ReLU": [
        "distill=[{name: moco, weight: 1, queue: 100, teacher: {name: moving_average, decay: 0.9, mode: train}}, "
        "{name: margin_relu, weight: 1e-4, teacher: previous_epoch}]",
        "metric_weight=0",
        "train.sampler=shuffled",
        "train.views=2",
        "train.batch_size=96",
        "model.hidden=8",
    ],
    "snapshot, whole batches": [
        "distill.0.teacher={name: snapshot, every: 3}",
        "data.on_device=true",
        "data.transform=published",
    ],
}


class Death(BaseException):
    """Stands for a kill that nothing in the run can catch."""


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]


def bits(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("metrics.json", "log.csv", "model/model.safetensors")]


def die_at_write(monkeypatch, number: int, *, after: bool) -> None:
    """Let the process die at a checkpoint, counted from 1: just after it is there, or half way through it."""
    save, written = CheckpointFiles.save_checkpoint, []

    def dying(self, checkpoint, path, storage_options=None):
        written.append(path)
        if len(written) == number and not after:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.stem}.99.tmp.ckpt").write_bytes(b"half")
            raise Death
        save(self, checkpoint, path, storage_options)
        if len(written) == number:
            raise Death

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", dying)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The unbroken run with the settings above."""
    return run(configured(), tmp_path_factory.mktemp("whole") / "run").folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_in_mid_epoch_ends_with_the_same_bits(monkeypatch, tmp_path, kind):
    config = configured(*KINDS[kind])
    unbroken = run(config, tmp_path / "unbroken").folder
    epoch = 7 if config.data.validation else 9  # checkpoints of the first: each two steps, the best, the last
    with monkeypatch.context() as patched:
        die_at_write(patched, epoch + 2, after=True)
        with pytest.raises(Death):
            run(config, tmp_path / "killed")
    saved = read_checkpoint(tmp_path / "killed" / "checkpoints" / "last.ckpt")
    assert saved["epoch"] == 1
    assert not saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    assert bits(resume(tmp_path / "killed").folder) == bits(unbroken)


@pytest.mark.parametrize(
    ("number", "after"),
    [(1, False), (6, True), (7, False), (7, True), (13, False), (13, True)],
    ids=["first", "best written", "end of epoch", "end of epoch written", "end", "end written"],
)
def test_a_run_killed_at_a_checkpoint_ends_with_the_same_bits_and_leaves_nothing(
    monkeypatch, tmp_path, whole, number, after
):
    with monkeypatch.context() as patched:
        die_at_write(patched, number, after=after)
        with pytest.raises(Death):
            run(configured(), tmp_path / "run")
    assert bits(resume(tmp_path / "run").folder) == bits(whole)
    names = [sorted(p.name for p in (f / "checkpoints").iterdir()) for f in (tmp_path / "run", whole)]
    assert names == [["best.ckpt", "last.ckpt"]] * 2
    assert not list((tmp_path / "run").rglob("*.tmp*"))


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(monkeypatch, tmp_path, whole):
    for number, attempt in enumerate(
        [lambda: run(configured(), tmp_path / "run")] + [lambda: resume(tmp_path / "run")] * 2
    ):
        with monkeypatch.context() as patched:
            die_at_write(patched, 1 + number, after=True)
            with pytest.raises(Death):
                attempt()
    assert bits(resume(tmp_path / "run").folder) == bits(whole)


def test_the_length_of_the_interval_changes_no_bit(tmp_path, whole):
    folder = run(configured("train.checkpoint_every_steps=null"), tmp_path / "run").folder
    assert bits(folder) == bits(whole)


def test_a_run_killed_before_its_first_checkpoint_starts_over(monkeypatch, tmp_path, whole):
    def dying(*_, **__):
        raise Death

    with monkeypatch.context() as patched:
        patched.setattr(running, "fit", dying)
        with pytest.raises(Death):
            run(configured(), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert bits(resume(tmp_path / "run").folder) == bits(whole)


@pytest.mark.parametrize("moment", ["embed_test", "write_json"])
def test_a_run_killed_after_training_is_evaluated_and_not_trained(monkeypatch, tmp_path, whole, moment):
    real, calls = getattr(running, moment), []

    def dying(*arguments, **named):
        calls.append(moment)
        if len(calls) == {"embed_test": 3, "write_json": 1}[moment]:  # two are the baselines
            raise Death
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(running, moment, dying)
        with pytest.raises(Death):
            run(configured(), tmp_path / "run")
    monkeypatch.setattr(EmbeddingModule, "training_step", lambda *_: pytest.fail("it was trained"))
    assert bits(resume(tmp_path / "run").folder) == bits(whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [3, 10])  # the last of an epoch: its validation comes first
def test_a_signal_in_training_stops_at_a_checkpoint_and_says_how_to_go_on(monkeypatch, tmp_path, whole, signum, step):
    add, steps = Means.add, []

    def interrupted(self, *arguments):
        steps.append(arguments)
        if len(steps) == step + 1:
            os.kill(os.getpid(), signum)
        add(self, *arguments)

    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patched:
        patched.setattr(Means, "add", interrupted)
        with pytest.raises(Interrupted, match=rf"{signum.name}; go on with: dmlkd train --resume .*run$") as caught:
            run(configured("train.checkpoint_every_steps=null"), tmp_path / "run")
    assert caught.value.signum == signum
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert len(steps) == step + 1
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == step + 1
    assert bits(resume(tmp_path / "run").folder) == bits(whole)


def test_a_signal_in_evaluation_stops_at_once(monkeypatch, tmp_path, whole):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    with monkeypatch.context() as patched:
        patched.setattr(running, "_save_model", interrupted)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run(configured(), tmp_path / "run")
    assert bits(resume(tmp_path / "run").folder) == bits(whole)


def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_stays(monkeypatch, tmp_path, whole):
    save, written = torch.save, []

    def full(checkpoint, file):
        written.append(file)
        if len(written) == 3:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(checkpoint, file)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(TrainingError) as caught:
            run(configured(), tmp_path / "run")
    assert str(caught.value).endswith("ckpt cannot be written: No space left on device; the one before is kept")
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert not list((tmp_path / "run").rglob("*.tmp*"))
    assert bits(resume(tmp_path / "run").folder) == bits(whole)


def test_a_write_that_the_system_breaks_off_keeps_the_file_before(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    CheckpointFiles().save_checkpoint({"a": torch.ones(10)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"last\.ckpt cannot be written: .*; the one before is kept"):
            CheckpointFiles().save_checkpoint({"a": torch.ones(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run by the checkpoint",))

    torch.save({"a": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read"):
        CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not (tmp_path / "run by the checkpoint").exists()


def test_every_generator_comes_back_through_a_checkpoint(tmp_path):
    import random

    def draw():
        return [torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()]  # noqa: NPY002

    np.random.standard_normal()  # noqa: NPY002  (leaves one that is cached)
    torch.save(Randomness().state_dict(), tmp_path / "state")
    first = draw()
    assert draw() != first
    Randomness().load_state_dict(read_checkpoint(tmp_path / "state"))
    assert draw() == first


def test_what_cannot_be_resumed_is_said(tmp_path, whole):
    with pytest.raises(UserError, match="is finished; measure it again with dmlkd eval --run"):
        resume(whole)
    with pytest.raises(UserError, match=r"is no run folder: it has no config\.yaml"):
        resume(tmp_path)
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys, time
from pathlib import Path
from dmlkd.training.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_folder_in_use_is_refused_until_its_process_is_dead(tmp_path, whole):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            (folder / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
            with pytest.raises(UserError, match="is in use by another process"):
                resume(folder)
        finally:
            holder.kill()
    assert bits(resume(folder).folder) == bits(whole)


def test_a_full_or_unwritable_folder_is_said_before_training(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: Not a directory"), held(tmp_path / "file" / "run"):
        pass
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"run folder .* cannot be written: "), held(tmp_path / "run"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def losses(metric: float, lsd: float) -> Losses:
    values = torch.tensor([metric, lsd])
    return Losses(values.sum(), values[0], {"lsd": values[1]}, {}, {"lsd": 1.0})


@pytest.mark.parametrize(
    ("bad", "named"),
    [((float("nan"), 1.0), "metric"), ((1.0, float("inf")), "lsd"), ((3e38, 3e38), "the weighted sum")],
)
def test_a_loss_that_is_not_finite_is_named_with_step_and_rows(bad, named):
    watch = FiniteLosses()
    watch.watch(losses(1.0, 1.0), Step(6, 1, torch.tensor([1, 2])))
    with pytest.raises(TrainingError, match=rf"at step 7 \(epoch 1\): {named}, of the batch of rows 5, 3;"):
        watch.watch(losses(*bad), Step(7, 1, torch.tensor([5, 3])))


def test_weights_that_are_not_finite_are_not_written_over_good_ones(monkeypatch, tmp_path):
    class Spoiler:
        steps = 0

    def spoiled(self, *_, **__):
        Spoiler.steps += 1
        if Spoiler.steps == 6:  # a checkpoint is due after it
            with torch.no_grad():
                self.model.head.weight[0, 0] = torch.nan

    monkeypatch.setattr(EmbeddingModule, "on_train_batch_start", spoiled)
    monkeypatch.setattr(FiniteLosses, "watch", lambda *_, **__: None)
    monkeypatch.setattr("dmlkd.training.objective.Objective.forward", _constant_loss)
    with pytest.raises(TrainingError, match="weights are not finite after step 5"):
        run(configured(), tmp_path / "run")
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 4
    assert all(torch.isfinite(v).all() for v in saved["state_dict"].values() if isinstance(v, torch.Tensor))


def _constant_loss(self, student, batch):
    total = 0 * torch.nan_to_num(student.embeddings).sum()
    return Losses(total, total, {}, {}, {})


def test_finite_weights_pass():
    check_weights(torch.nn.BatchNorm1d(2), torch.nn.Linear(1, 1), step=0)
    norm = torch.nn.BatchNorm1d(2)
    norm.running_var[0] = torch.inf
    with pytest.raises(TrainingError, match="such as running_var"):
        check_weights(norm, torch.nn.Linear(1, 1), step=0)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training_step", "fsync", "embed_test"])
def test_a_real_kill_ends_with_the_same_bits(tmp_path, whole, moment):
    """SIGKILL in mid epoch, while a checkpoint is being written, and in the evaluation at the end."""
    program = f"""
import os, signal, sys
from pathlib import Path
from dmlkd.config import load_config
from dmlkd.training import run, running, module
owner = {{"training_step": module.EmbeddingModule, "fsync": os, "embed_test": running}}["{moment}"]
real, calls = getattr(owner, "{moment}"), []
def killed(*arguments, **named):
    calls.append(1)
    if len(calls) == {{"training_step": 10, "fsync": 3, "embed_test": 3}}["{moment}"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(owner, "{moment}", killed)
run(load_config(Path("configs/digits.yaml"), {SHORT!r})[0], Path(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "run"], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert bool(list((tmp_path / "run").rglob(".*.tmp*"))) == (moment == "fsync")
    assert bits(resume(tmp_path / "run").folder) == bits(whole)
    assert not list((tmp_path / "run").rglob(".*.tmp*"))


def test_a_run_says_what_it_came_from_and_other_data_are_refused(monkeypatch, tmp_path, whole):
    with monkeypatch.context() as patched:
        die_at_write(patched, 1, after=True)
        with pytest.raises(Death):
            run(configured(), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recorded == {**json.loads((whole / "run.json").read_text()), "processes": recorded["processes"]}
    assert recorded["data"]["test"] == {"images": 896, "classes": 5}
    (process,) = recorded["processes"]
    assert process["versions"] == json.loads((whole / "metrics.json").read_text())["versions"]
    assert {"command", "revision", "started", "host", "python"} <= set(process)
    (tmp_path / "run" / "run.json").write_text(json.dumps({**recorded, "data": {"test": {"images": 895}}}))
    with pytest.raises(DataError, match="was begun with other images"):
        resume(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(recorded))
    assert bits(resume(tmp_path / "run").folder) == bits(whole)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["processes"]) == 2


def test_a_disk_that_is_full_when_the_log_is_written_is_one_line(monkeypatch, tmp_path, whole):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("dmlkd.training.watching.write_csv", full)
        with pytest.raises(TrainingError, match="No space left on device; make room, then: dmlkd train --resume"):
            run(configured(), tmp_path / "run")
    assert bits(resume(tmp_path / "run").folder) == bits(whole)
