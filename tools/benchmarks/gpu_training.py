"""How fast training steps are on a GPU: precision, layout, compilation, teachers; and the share of its matmul rate.

python tools/benchmarks/gpu_training.py [--data FOLDER] [--steps 50] [--out result.json]
python tools/benchmarks/gpu_training.py --device cpu --quick     # tiny, to see that it works

NOT RUN ON A GPU YET: tried on a CPU with --quick alone, where its figures mean nothing; --data was never tried.

ResNet-50 at 224 px on made-up images that are on the device already, 112 a batch, Adam; each arm a process of its own.
Switches: float32 (TF32 off), TF32, bf16, bf16 with channels last, and that with torch.compile. Teachers, in float32 and
in bf16 with channels last: none, LSD with the previous epoch's network, LSD with remembered embeddings. With --data,
the folder of cars196-96px.zip and cars196.csv, also an epoch of ``fit`` on Cars196 at 96 px, loading included.

"of matmul": three times the floating point operations of a forward pass a step, four times with a teacher that runs
one, over the rate measured of a product of two large matrices in the arm's own precision.
"""

import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from harness import in_child, parser, show
from pytorch_metric_learning.losses import ContrastiveLoss
from torch.utils.flop_counter import FlopCounterMode

from dmlkd import Batch, EmbeddingModel, Objective
from dmlkd.distill import Constant, ListwiseSelfDistillation, PreviousEpochTeacher, RememberedTeacher
from dmlkd.models import compile_trunks
from dmlkd.training import Term

BATCHES = 4
ARMS = [
    {"switches": "float32", "teacher": "none"},
    {"switches": "tf32", "teacher": "none"},
    {"switches": "bf16", "teacher": "none"},
    {"switches": "bf16, channels last", "teacher": "none"},
    {"switches": "bf16, channels last, compiled", "teacher": "none"},
    {"switches": "float32", "teacher": "previous epoch"},
    {"switches": "float32", "teacher": "remembered"},
    {"switches": "bf16, channels last", "teacher": "previous epoch"},
    {"switches": "bf16, channels last", "teacher": "remembered"},
]


def synchronized(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(device: str, dtype: torch.dtype, side: int) -> float:
    """Floating point operations a second of the best of ten products of two square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = synchronized(device)
        a @ b
        seconds.append(synchronized(device) - began)
    return 2 * side**3 / min(seconds)


def forward_flops(model: EmbeddingModel, images: torch.Tensor) -> int:
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    model.train()
    return counter.get_total_flops()


def arm(
    *, switches: str, teacher: str, device: str, backbone: str, size: int, batch: int, steps: int, side: int, seed: int
):
    """Images a second of one arm."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = switches == "tf32"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed)
    model = EmbeddingModel(backbone, dim=128).to(device)
    layout = torch.channels_last if "channels last" in switches else torch.contiguous_format
    model.to(memory_format=layout)
    flops = (
        3 * forward_flops(model, torch.rand(1, 3, size, size, device=device).contiguous(memory_format=layout)) * batch
    )
    teachers = {
        "none": lambda: None,
        "previous epoch": lambda: PreviousEpochTeacher(model),
        "remembered": lambda: RememberedTeacher(rows=BATCHES * batch, dim=128),
    }
    made = teachers[teacher]()
    terms = [] if made is None else [Term(ListwiseSelfDistillation(), made, 50.0, Constant(), "lsd")]
    objective = Objective(ContrastiveLoss(), terms).to(device)
    objective.start_epoch(model, 0, 3)
    if "compiled" in switches:
        compile_trunks(model)
        compile_trunks(objective)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    labels = torch.arange(batch, device=device) // 4
    batches = [
        Batch(
            torch.rand(batch, 3, size, size, device=device).contiguous(memory_format=layout),
            labels,
            torch.arange(batch, device=device) + number * batch,
        )
        for number in range(BATCHES)
    ]
    mixed = torch.autocast(device, torch.bfloat16) if "bf16" in switches else nullcontext()

    def step(number: int) -> None:
        taken = batches[number % BATCHES]
        with mixed:
            losses = objective(model.signals(taken.images, objective.student_needs), taken)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        objective.after_step(model)

    for number in range(2 * BATCHES):
        if number == BATCHES:
            objective.start_epoch(model, 1, 3)
        step(number)
    parts = []
    for _ in range(5):
        began = synchronized(device)
        for number in range(steps):
            step(number)
        parts.append((synchronized(device) - began) / steps)
    seconds = statistics.median(parts)
    rate = matmul_rate(device, torch.bfloat16 if "bf16" in switches else torch.float32, side)
    if teacher == "previous epoch":
        flops = flops * 4 // 3
    peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else None
    return {
        "images/s": batch / seconds,
        "ms a step": 1000 * seconds,
        "slowest/fastest": max(parts) / min(parts),
        "TFLOP/s": flops / seconds / 1e12,
        "of matmul": flops / seconds / rate,
        "peak GiB": peak,
    }


def cars(
    *, switches: str, root: str, device: str, backbone: str, batch: int, workers: int, seed: int
) -> dict[str, object]:
    """Images a second of the second of two epochs of ``fit`` on Cars196 at 96 px, loading and checks included."""
    from dmlkd.config import load_config
    from dmlkd.training import fit
    from dmlkd.training.building import build
    from dmlkd.training.progress import Pace, PlainProgress

    paces: list[float] = []

    class Timed(PlainProgress):
        def on_train_epoch_end(self, *_):
            pace: Pace = self._pace
            paces.append(pace.images_per_second)

    bf16 = ["train.precision=bf16-mixed", "train.channels_last=true"] if "bf16" in switches else []
    overrides = [
        f"data.root={root}",
        "data.archive=cars196-96px.zip",
        "data.image_size=96",
        f"data.workers={workers}",
        "data.in_memory=true",
        "data.cache=null",
        "data.on_device=true",
        f"model={{backbone: {backbone}, dim: 128}}",
        f"train.batch_size={batch}",
        "train.epochs=2",
        f"train.seed={seed}",
        f"train.accelerator={'cpu' if device == 'cpu' else 'cuda'}",
        *bf16,
    ]
    config, _ = load_config(Path(__file__).parents[2] / "configs" / "cars196-64px.yaml", overrides)
    parts = build(config)
    with tempfile.TemporaryDirectory() as out:
        fit(
            parts.model,
            parts.objective,
            parts.data,
            config.train,
            out=Path(out),
            workers=workers,
            callbacks=[Timed()],
            quiet=True,
        )
    return {"images/s": paces[-1], "ms a step": 1000 * batch / paces[-1]}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--device", default="cuda")
    options_of.add_argument("--quick", action="store_true", help="tiny: to see that it works")
    options_of.add_argument("--batch", type=int, default=112)
    options_of.add_argument("--steps", type=int, default=50)
    options_of.add_argument("--workers", type=int, default=8)
    options_of.add_argument("--data", help="folder of cars196-96px.zip and cars196.csv; none: without the epoch of fit")
    options = options_of.parse_args()
    if options.task:
        print(json.dumps({"arm": arm, "cars": cars}[options.task](**json.loads(options.arguments))))
        return
    shape = {"backbone": "resnet50", "size": 224, "batch": options.batch, "steps": options.steps, "side": 8192}
    if options.quick:
        shape = {"backbone": "resnet18", "size": 32, "batch": 8, "steps": 1, "side": 128}
    common = {"device": options.device, "seed": options.seed}
    rows: list[dict[str, object]] = []
    for choice in ARMS:
        if options.quick and "compiled" in choice["switches"]:
            continue  # takes minutes on a CPU
        rows.append({**choice, **in_child(__file__, "arm", {}, **choice, **common, **shape)})
    if options.data:
        few = {
            "backbone": shape["backbone"],
            "batch": shape["batch"],
            "workers": 0 if options.quick else options.workers,
        }
        for switches in ("float32", "bf16, channels last"):
            row = in_child(__file__, "cars", {}, switches=switches, root=options.data, **common, **few)
            rows.append({"switches": switches, "teacher": "as configured, fit on Cars196, 96 px", **row})
    name = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"
    show(rows, options.out, device_name=name, **common, **shape)


if __name__ == "__main__":
    main()
