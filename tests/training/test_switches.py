"""Precision, memory format, compilation and chunks: switches that change what a step costs, not what it computes."""

import functools

import pytest
import torch
from lightning import Callback
from torch import nn

from dmlkd import EmbeddingModel
from dmlkd.config import load_config
from dmlkd.errors import ConfigError
from dmlkd.models import Trunk
from dmlkd.training import fit, run
from dmlkd.training.building import build

SHORT = ["train.epochs=3", "data.image_size=8", "model.backbone_args.width=8", "data.transform=plain"]


def configured(configs, *overrides):
    return load_config(configs / "digits.yaml", [*SHORT, *overrides])[0]


def history(config, out, *callbacks: Callback):
    """The log of a run, and its parts."""
    torch.manual_seed(0)
    parts = build(config)
    out.mkdir()
    rows = fit(parts.model, parts.objective, parts.data, config.train, out=out, callbacks=callbacks).history
    return rows, parts


def same(first, second, rel):
    assert len(first) == len(second) == 3
    for mine, theirs in zip(first, second, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=rel, abs=1e-6)


class Seen(Callback):
    """The dtypes and memory formats of what student and teacher's last stages give."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()
        self.channels_last: set[bool] = set()
        self.count = 0

    def on_train_start(self, trainer, pl_module):
        trunks = [module for module in pl_module.modules() if isinstance(module, Trunk)]
        self.count = len(trunks)
        for trunk in trunks:
            trunk.stages[0].register_forward_hook(self.look)

    def look(self, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        self.dtypes.add(output.dtype)
        self.channels_last.add(output.is_contiguous(memory_format=torch.channels_last))


def test_a_run_in_bf16_trains_in_bf16_and_keeps_float32_weights(configs, tmp_path):
    seen = Seen()
    rows, parts = history(configured(configs, "train.precision=bf16-mixed", "train.lr=0.003"), tmp_path / "run", seen)
    assert seen.dtypes == {torch.bfloat16}
    assert seen.count == 2
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}
    plain, _ = history(configured(configs, "train.lr=0.003"), tmp_path / "plain")
    assert rows[-1]["train/metric"] < 0.95 * rows[0]["train/metric"]
    assert rows[-1]["train/metric"] == pytest.approx(plain[-1]["train/metric"], rel=0.1)
    assert rows[-1]["train/metric"] != plain[-1]["train/metric"]


def test_a_whole_run_in_bf16_is_measured_and_saved(configs, tmp_path):
    overrides = ["train.precision=bf16-mixed", "data.validation=0.4", "train.batch_size=48", "train.chunk_size=20"]
    result = run(configured(configs, *overrides), tmp_path / "run")
    assert all(0 <= score <= 1 for score in result.metrics["test"].values())
    weights = EmbeddingModel.from_pretrained(result.folder / "model").parameters()
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in weights)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_fp16_without_a_gpu_is_refused(configs, accelerator):
    if accelerator == "auto" and torch.backends.mps.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="16-mixed needs a GPU"):
        build(configured(configs, "train.precision=16-mixed", f"train.accelerator={accelerator}"))


@pytest.mark.gpu
@pytest.mark.parametrize("switches", [[], ["train.chunk_size=20", "train.channels_last=true"]])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_in_fp16_scales_its_loss_and_learns(configs, tmp_path, switches):
    config = configured(configs, "train.precision=16-mixed", "train.accelerator=cuda", "train.lr=0.003", *switches)
    seen = Seen()
    rows, parts = history(config, tmp_path / "run", seen)
    assert seen.dtypes == {torch.float16}
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["MixedPrecision"]["scale"] > 1
    assert rows[-1]["train/metric"] < 0.95 * rows[0]["train/metric"]
    assert all(torch.isfinite(p).all() for p in parts.model.parameters())


def test_channels_last_changes_the_layout_and_nothing_else(configs, tmp_path):
    seen, plainly = Seen(), Seen()
    plain, _ = history(configured(configs), tmp_path / "plain", plainly)
    rows, parts = history(configured(configs, "train.channels_last=true"), tmp_path / "run", seen)
    assert seen.channels_last == {True}
    assert plainly.channels_last == {False}
    same(rows, plain, rel=1e-3)
    parts.model.save_pretrained(tmp_path / "model")
    again = EmbeddingModel.from_pretrained(tmp_path / "model").eval()
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(again(images), parts.model.eval()(images))


def test_compiled_trunks_compute_the_same_under_the_same_names(configs, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(Trunk, "compile", functools.partialmethod(nn.Module.compile, backend=backend))
    plain, parts = history(configured(configs), tmp_path / "plain")
    names = set(parts.model.state_dict())
    assert not graphs
    rows, parts = history(configured(configs, "train.compile=true"), tmp_path / "run")
    same(rows, plain, rel=1e-4)
    assert len(graphs) >= 2  # of the student in training and of the teacher
    assert set(parts.model.state_dict()) == names
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("_orig_mod" in name for name in saved)


@pytest.mark.parametrize("method", ["lsd", "s2sd"])
def test_a_run_in_chunks_is_the_run_of_whole_batches(configs, tmp_path, method):
    teacher = {"lsd": "previous_epoch", "s2sd": "{name: wider_heads, dims: [96], features_after: 5}"}[method]
    overrides = [
        "model.frozen_batch_norm=true",
        "train.lr=0.01",
        f"distill=[{{name: {method}, weight: 50, teacher: {teacher}}}]",
    ]
    plain, _ = history(configured(configs, *overrides), tmp_path / "plain")
    sizes: list[int] = []
    plainly = EmbeddingModel.signals

    def signals(self, images, needs=()):
        sizes.append(len(images))
        return plainly(self, images, needs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddingModel, "signals", signals)
        rows, parts = history(configured(configs, *overrides, "train.chunk_size=7"), tmp_path / "run")
    assert set(sizes) == {6, 7}  # batches of 80
    assert rows[-1][f"train/{method}"] > 0
    assert all(getattr(t, "chunk_size", 7) == 7 for t in parts.objective.teachers)
    same(rows, plain, rel=0.05)
