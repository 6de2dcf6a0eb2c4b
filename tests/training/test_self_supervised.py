"""Training without labels and then with them: what a run of each phase does, and misfits refused in one line."""

from pathlib import Path

import pytest
import torch

from dmlkd import EmbeddingModel, Objective
from dmlkd.config import TrainConfig, load_config, load_training
from dmlkd.data.loading import loader
from dmlkd.distill import MarginReLU, MomentumContrast, MovingAverageTeacher
from dmlkd.errors import ConfigError
from dmlkd.signals import Batch
from dmlkd.training import Term, run, run_plan
from dmlkd.training.building import build
from dmlkd.training.building_losses import build_losses, check_student
from dmlkd.training.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[2]
SHORT = [
    "data.validation=0",
    "data.image_size=8",
    "data.transform=plain",
    "model.backbone_args.width=8",
    "eval.metrics=[recall@1, map@r]",
    "miner=null",
    "metric_loss=ContrastiveLoss",
]
MOCO = "distill=[{name: moco, weight: 1, queue: 300, teacher: {name: moving_average, decay: 0.9, mode: train}}]"
VIEWS = ["train.sampler=shuffled", "train.views=2", "train.batch_size=80", "train.epochs=2"]
WITHOUT_LABELS = [MOCO, *VIEWS, "metric_weight=0", "model.hidden=16"]


def configured(*overrides: str):
    return load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]


def test_without_labels_a_run_is_the_same_whatever_they_are(tmp_path):
    weights = []
    for noise in (0, 0.6):
        config = configured(*WITHOUT_LABELS, "data.transform=handwriting", f"data.noise={noise}")
        folder = run(config, tmp_path / str(noise)).folder
        weights.append((folder / "model" / "model.safetensors").read_bytes())
    wrong = (tmp_path / "0.6" / "metrics.json").read_text()
    assert '"wrong_labels"' in wrong
    assert weights[0] == weights[1]


def test_the_views_of_an_image_differ_and_come_beside_each_other():
    parts = build(configured(*WITHOUT_LABELS, "data.transform=handwriting"))
    batch = next(iter(loader(parts.data.train, batch_sampler=parts.sampler)))
    assert torch.equal(batch.rows[::2], batch.rows[1::2])
    assert len(set(batch.rows.tolist())) == len(batch.rows) / 2
    assert all(not torch.equal(*views) for views in batch.images.unflatten(0, (-1, 2)))


def test_a_run_without_labels_learns_to_tell_images_apart_and_keeps_its_queue(tmp_path):
    result = run(configured(*WITHOUT_LABELS, "train.epochs=4"), tmp_path / "run")
    losses = [row["train/moco"] for row in result.fit.history]
    assert all(row["train/metric"] == 0 for row in result.fit.history)
    assert losses[-1] < losses[1]  # in the first epoch the queue fills
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert (state["objective.methods.moco.rows"] >= 0).all()
    assert torch.allclose(state["objective.methods.moco.keys"].norm(dim=1), torch.ones(300))


def test_the_first_step_of_all_has_a_gradient_of_zero():
    model = EmbeddingModel("convnet4", dim=4, in_channels=1)
    objective = Objective(
        torch.nn.Identity(), [Term(MomentumContrast(dim=4), MovingAverageTeacher(model))], metric_weight=0
    )
    batch = Batch(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1]))
    losses = objective(model.signals(batch.images), batch)
    losses.total.backward()
    assert losses.total == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


PLAN = f"""
data: {{name: digits, image_size: 8, transform: plain, validation: 0}}
model: {{backbone: convnet4, dim: 8, backbone_args: {{width: 8}}}}
metric_loss: ContrastiveLoss
train: {{epochs: 1, batch_size: 80, per_class: 16}}
eval: {{metrics: [recall@1]}}
plan:
  - name: pretrain
    model: {{hidden: 16}}
    metric_weight: 0
    train: {{sampler: shuffled, views: 2}}
    {MOCO.replace("=", ": ", 1)}
  - name: student
    start: {{fit: pretrain, part: trunk}}
    distill: [{{name: margin_relu, weight: 1e-3, teacher: {{name: finished_run, fit: pretrain}}}}]
"""


def test_both_phases_are_one_plan_and_the_second_starts_next_to_its_teacher(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    plan, _ = load_training(tmp_path / "plan.yaml")
    out = run_plan(plan, tmp_path / "out").folder / "fits"
    first, last = (EmbeddingModel.from_pretrained(out / name) for name in ("pretrain", "student"))
    assert isinstance(first.head, torch.nn.Sequential)
    assert isinstance(last.head, torch.nn.Linear)
    saved = read_checkpoint(out / "student" / "checkpoints" / "last.ckpt")["state_dict"]
    for name, weight in first.trunk.state_dict().items():
        assert torch.equal(saved[f"objective.teachers.0.network.trunk.{name}"], weight)
    parts = build(plan.fits[1].config, out)
    images = parts.data.train.batch(list(range(32))).images
    mine, theirs = (m.eval().signals(images, MarginReLU.teacher_needs) for m in (parts.student, first.eval()))
    for one, other in zip(mine.pre_activations, theirs.pre_activations, strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A finished run with a trunk of four stages of 8 channels."""
    config = configured("distill=[]", "train.epochs=1")
    return run(config, tmp_path_factory.mktemp("earlier") / "run").folder


def test_a_run_is_held_to_the_features_of_an_earlier_one(tmp_path, earlier):
    """The more, the less it leaves them."""
    start = f"start={{path: {earlier}, part: trunk}}"
    away = []
    for weight in (1e-6, 1.0):
        term = f"{{name: margin_relu, weight: {weight}, teacher: {{name: finished_run, path: {earlier}}}}}"
        result = run(configured(start, f"distill=[{term}]", "train.epochs=3", "train.lr=1e-2"), tmp_path / str(weight))
        away.append(result.fit.history[-1]["train/margin_relu"])
    assert away[1] < away[0] / 3


MISFITS = {
    "one view": ([MOCO, "metric_weight=0"], "moco compares views of an image: set train.sampler to shuffled and"),
    "views by class": (["train.views=2"], "several views of an image need train.sampler shuffled"),
    "uneven batch": ([MOCO, *VIEWS, "train.batch_size=81"], "batch_size must be a multiple of views, got 81 and 2"),
    "smooth-AP": (
        ["train.sampler=shuffled", "metric_loss=SmoothAPLoss"],
        "SmoothAPLoss needs equally many images of each class, which shuffled does not draw",
    ),
    "other channels": (
        ["model.backbone_args.width=4",
         "distill=[{name: margin_relu, weight: 1, teacher: {name: finished_run, path: EARLIER}}]"],
        r"has stages of \(8, 8, 8, 8\) channels, the student of \(4, 4, 4, 4\)",
    ),
    "a memory": (
        ["distill=[{name: margin_relu, weight: 1, teacher: remembered}]"],
        "MarginReLU needs its teacher's pre_activation_norms, pre_activations, got RememberedTeacher",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), MISFITS.values(), ids=MISFITS)
def test_parts_that_do_not_fit_are_refused_in_one_line(earlier, overrides, message):
    with pytest.raises(ConfigError, match=message) as refused:
        build(configured(*(override.replace("EARLIER", str(earlier)) for override in overrides)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ("mobilenet_v3_small", "previous_epoch", "needs its teacher's .* got PreviousEpochTeacher"),
        ("convnet4", "{name: finished_run, path: mobilenet_v3_small}", "the stages of .* do not end in batch norm and"),
        ("mobilenet_v3_small", "{name: finished_run, path: convnet4}", "has stages of .* channels, the student of"),
    ],
)
def test_backbones_whose_stages_do_not_fit_are_refused_in_one_line(tmp_path, monkeypatch, student, teacher, message):
    monkeypatch.chdir(tmp_path)
    models = {name: EmbeddingModel(name, dim=4) for name in ("convnet4", "mobilenet_v3_small")}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    config = configured(f"distill=[{{name: margin_relu, weight: 1, teacher: {teacher}}}]")
    with pytest.raises(ConfigError, match=message) as refused:
        build_losses(config, models[student], classes=3, rows=9)
    assert "\n" not in str(refused.value)


def test_a_student_without_what_a_term_reads_is_refused():
    class Mine(MarginReLU):
        teacher_needs = frozenset({"embeddings"})

    model = EmbeddingModel("mobilenet_v3_small", dim=4)
    with pytest.raises(ConfigError, match="mine reads pre_activations, which only a backbone has") as refused:
        check_student([Term(Mine(), MovingAverageTeacher(model), name="mine")], model, TrainConfig())
    assert refused.value.path == ("model", "backbone")
