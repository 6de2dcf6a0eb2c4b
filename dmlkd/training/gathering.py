"""A batch that several processes share: what each has of it is joined, and each computes the losses of the whole.

Each process runs the networks on its own images. Their signals are gathered in rank order, so every process has the
loss L of the whole batch. It sends the gradient of L back through its own share of the signals alone, multiplied by the
number of processes W. DistributedDataParallel then averages over the processes:

- of the model's weights θ, each process r has W ∂L/∂z_r ∂z_r/∂θ for its share z_r; the mean over the processes is
  Σ_r ∂L/∂z_r ∂z_r/∂θ, the gradient of one process on the joined batch;
- of the objective's weights p (proxies, heads), which see the gathered signals, each process has all of ∂L/∂p, and the
  mean of equal gradients is that gradient.

So nothing is sent in the backward pass but what DistributedDataParallel sends anyway.
"""

import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from dmlkd.signals import Batch, Need, Signals


class Shares(NamedTuple):
    """How a batch is shared.

    Attributes:
        sizes: images of each process, in rank order.
        rank: of this process.
        group: of processes; None: all.
    """

    sizes: tuple[int, ...]
    rank: int
    group: Any = None

    def gathered(self, share: Tensor) -> Tensor:
        """The shares (B_r, ...) of all processes one after the other, (B, ...), with gradient for this one's."""
        joined: Tensor = _Gathered.apply(share, self)
        return joined

    def signals(self, signals: Signals, needs: Collection[Need]) -> Signals:
        """The signals of all processes: embeddings, and the fields that are needed."""
        return signals.only(needs).map(self.gathered)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, shares: Shares) -> Tensor:
        ctx.shares = shares
        padded = share.new_zeros((max(shares.sizes), *share.shape[1:]))
        padded[: len(share)] = share
        parts = [torch.empty_like(padded) for _ in shares.sizes]
        dist.all_gather(parts, padded, group=shares.group)
        return torch.cat([part[:size] for part, size in zip(parts, shares.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        sizes, rank, _ = ctx.shares
        first = sum(sizes[:rank])
        return gradients[0][first : first + sizes[rank]] * len(sizes), None


class SharedBatch(Batch):
    """A batch that several processes share: labels and rows of all its images, but this process's images alone.

    Attributes:
        shares: of the processes.
    """

    shares: Shares

    @override
    def signals_of(self, network: Callable[[Tensor], Signals], needs: Collection[Need] = ()) -> Signals:
        return self.shares.signals(network(self.images), needs)

    @override
    def take(self, positions: Tensor) -> "SharedBatch":
        """Some positions of the whole batch, ascending, with those of their images that are this process's."""
        sizes, rank, _ = self.shares
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(positions.device)[positions]
        own = positions[owner == rank] - sum(sizes[:rank])
        part = SharedBatch(self.images[own], self.labels[positions], self.rows[positions])
        part.shares = self.shares._replace(sizes=tuple(torch.bincount(owner, minlength=len(sizes)).tolist()))
        return part


def gather(
    student: Signals, batch: Batch, needs: Collection[Need] = (), *, group: Any = None
) -> tuple[Signals, SharedBatch]:
    """Join what the processes have of one batch, in rank order; shares may differ in size.

    Every process of the group must call this, and gets the same but for the images. The losses of the joined batch are
    to be computed alike in all, and gradients averaged over the processes, as DistributedDataParallel does.

    Args:
        student: what the student says of this process's images, with gradient.
        batch: this process's images, labels and rows.
        needs: fields of the student's signals that are gathered beside the embeddings.
        group: of processes; None: all.
    """
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=batch.labels.device)
    counts[dist.get_rank(group)] = len(batch.labels)
    dist.all_reduce(counts, group=group)
    shares = Shares(tuple(counts.tolist()), dist.get_rank(group), group)
    labels, rows = shares.gathered(torch.stack([batch.labels, batch.rows], dim=1)).t().contiguous()
    joined = SharedBatch(batch.images, labels, rows)
    joined.shares = shares
    return shares.signals(student, needs), joined


@contextmanager
def same_randomness(seed: int, step: int) -> Iterator[None]:
    """Random numbers that depend on a seed and a step alone; after it, those go on that were there before.

    Miners that draw must draw alike in all processes, whose own random numbers differ, as those of their images must.
    """
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        seed_all(seed, step)
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)


def seed_all(*entropy: int) -> None:
    """Seed the generators of torch, NumPy and Python with one number made of some."""
    number = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)


@torch.no_grad()
def average_statistics(module: nn.Module, *, group: Any = None) -> None:
    """Give all processes the mean of their running statistics of batch norm, which each has taken of its own images.

    The mean of the running means is that of the joined batch; the mean of the running variances lacks the variance
    between the shares. Batch norm that is synchronised or frozen is left as it is.

    Args:
        module: what holds them; in the mode that it was run in.
        group: of processes; None: all.
    """
    moved = [
        statistic
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._NormBase) and not isinstance(norm, nn.SyncBatchNorm) and norm.training
        for statistic in (norm.running_mean, norm.running_var)
        if statistic is not None
    ]
    if not moved:
        return
    together = torch.cat([statistic.flatten() for statistic in moved])
    dist.all_reduce(together, group=group)
    together /= dist.get_world_size(group)
    for statistic, mean in zip(moved, torch.split(together, [s.numel() for s in moved]), strict=True):
        statistic.copy_(mean.view_as(statistic))
