"""What a training step costs with each teacher, against the plain metric loss: ResNet-18, 64 px, batch 112.

python tools/benchmarks/training_step.py [--repeats 15] [--batch 112] [--size 64] [--device cpu] [--out result.json]

Every arm has a model and an optimiser of its own; the arms take turns step by step, so that a change in the machine's
load falls on all of them; the ratio is the median over the turns of the time divided by that turn's plain step.
"""

import statistics
import time

import torch
from harness import parser, show
from pytorch_metric_learning.losses import ContrastiveLoss

from dmlkd import Batch, EmbeddingModel, Objective
from dmlkd.distill import (
    Constant,
    ListwiseSelfDistillation,
    MovingAverageTeacher,
    PreviousEpochTeacher,
    RememberedTeacher,
    WiderHeadsTeacher,
)
from dmlkd.training import Term

ROWS = 8054
CLASSES = 98


def arms(features: int, dim: int):
    """Each maker takes the student and gives the method and its teacher, or None."""
    from dmlkd import registry

    lsd = ListwiseSelfDistillation
    made = {
        "plain metric loss": lambda _: None,
        "plain metric loss again": lambda _: None,
        "LSD, previous epoch": lambda student: (lsd(), PreviousEpochTeacher(student)),
        "LSD, moving average": lambda student: (lsd(), MovingAverageTeacher(student)),
        "LSD, remembered": lambda _: (lsd(), RememberedTeacher(rows=ROWS, dim=dim)),
        "S2SD (512, 1024, 1536, 2048)": lambda _: (
            lsd(),
            WiderHeadsTeacher(features=features, metric_loss=lambda _: ContrastiveLoss(), features_after=0),
        ),
    }
    if "obd_sd" in registry.METHODS:
        obd = registry.load(registry.METHODS["obd_sd"].method)
        made["OBD-SD, remembered"] = lambda _: (obd(), RememberedTeacher(rows=ROWS, dim=dim))
    return made


class Arm:
    """A model in training, on the device its weights are on."""

    def __init__(self, model: torch.nn.Module, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.device = next(model.parameters()).device

    def step(self, batch: Batch) -> float:
        """Seconds of one step."""
        self._wait()
        started = time.perf_counter()
        signals = self.model.signals(batch.images, self.objective.student_needs)
        losses = self.objective(signals, batch)
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()
        self.objective.after_step(self.model)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.cuda.synchronize()


def built(make, *, dim: int, device: str) -> Arm:
    """A ResNet-18 with one term, or none."""
    torch.manual_seed(0)
    model = EmbeddingModel("resnet18", dim=dim).to(device)
    made = make(model)
    terms = [] if made is None else [Term(*made, weight=50.0, schedule=Constant(), name="term")]
    objective = Objective(ContrastiveLoss(), terms).to(device)
    parameters = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
    return Arm(model, objective, torch.optim.Adam(parameters, lr=1e-5))


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--repeats", type=int, default=15)
    options_of.add_argument("--batch", type=int, default=112)
    options_of.add_argument("--size", type=int, default=64)
    options_of.add_argument("--dim", type=int, default=128)
    options_of.add_argument("--device", default="cpu")
    options = options_of.parse_args()
    features = EmbeddingModel("resnet18", dim=options.dim).trunk.channels
    running = {
        name: built(make, dim=options.dim, device=options.device) for name, make in arms(features, options.dim).items()
    }
    generator = torch.Generator().manual_seed(options.seed)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(-2, options.repeats):  # two turns to warm up
        rows = torch.arange(options.batch) + (turn % 2) * options.batch
        batch = Batch(
            torch.rand(options.batch, 3, options.size, options.size, generator=generator).to(options.device),
            (torch.arange(options.batch) // 4 % CLASSES).to(options.device),
            rows.to(options.device),
        )
        order = list(running)
        shift = turn % len(order)
        for name in order[shift:] + order[:shift]:
            arm = running[name]
            arm.objective.start_epoch(arm.model, (turn + 2) // 2, options.repeats + 2)
            taken = arm.step(batch)
            if turn >= 0:
                seconds[name].append(taken)
    plain = seconds["plain metric loss"]
    rows = [
        {
            "step": name,
            "median s": statistics.median(times),
            "ratio": statistics.median(t / p for t, p in zip(times, plain, strict=True)),
        }
        for name, times in seconds.items()
    ]
    shape = {key: getattr(options, key) for key in ("repeats", "batch", "size", "dim", "device", "seed")}
    show(rows, options.out, threads=torch.get_num_threads(), **shape)


if __name__ == "__main__":
    main()
