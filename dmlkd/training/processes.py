"""The processes of a run: started by torchrun or Slurm, on one machine or several; the first writes the run folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from typing_extensions import override

from dmlkd.config import TrainConfig
from dmlkd.errors import ConfigError, Interrupted, TrainingError, UserError
from dmlkd.launching import launcher

T = TypeVar("T")

_FAREWELL = timedelta(seconds=5)  # what a process with an error waits for the others, so that all end as it does


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and which of them this is.

    Attributes:
        size: how many.
        rank: of this one, from 0.
    """

    size: int = 1
    rank: int = 0

    @staticmethod
    def now() -> "Processes":
        """All of torch.distributed's default group; this one alone where there is none."""
        if dist.is_available() and dist.is_initialized():
            return Processes(dist.get_world_size(), dist.get_rank())
        return Processes()

    @property
    def several(self) -> bool:
        """Whether this one is not alone."""
        return self.size > 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def group(self) -> Any:
        """That of several processes, as evaluation takes it; None: this one is alone."""
        return dist.group.WORLD if self.several else None

    def from_first(self, work: Callable[[], T]) -> T:
        """What the first process makes, on all; where it is refused, all are."""
        if not self.several:
            return work()
        made: list[Any] = [None, None]
        if self.first:
            try:
                made[0] = work()
            except (UserError, OSError) as error:
                made[1] = error
        dist.broadcast_object_list(made)
        if made[1] is not None:
            raise made[1]
        value: T = made[0]
        return value

    def all_of(self, own: T) -> list[T]:
        """What each process has, in rank order."""
        if not self.several:
            return [own]
        each: list[Any] = [None] * self.size
        dist.all_gather_object(each, own)
        return each

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes have."""
        if not self.several:
            return number
        held = torch.tensor([number], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return int(held)

    def check_same(self, what: str, own: object) -> None:
        """Refuse to train together what began differently.

        Raises:
            UserError: if the processes do not all have the same.
        """
        each = self.all_of(own)
        different = next((rank for rank, value in enumerate(each) if value != each[0]), None)
        if different is not None:
            raise UserError(
                f"process {different} has {what} of its own: {each[different]}, the first has {each[0]}; "
                "all machines need the same data, configuration and versions"
            )


@contextmanager
def together() -> Iterator[Processes]:
    """Join the processes that torchrun or ``srun`` started, and end as one: with one message, in all.

    An error of the user's is marked as said in all processes but the one that had it first; where another process has
    ended, so does this one. Within another ``together``, in a group that is there already, and in a process that was
    started alone, it does nothing.

    Raises:
        TrainingError: if another process has ended.
    """
    launched = None if dist.is_available() and dist.is_initialized() else _environment()
    if launched is None:
        yield Processes.now()
        return
    store = _joined(launched)
    try:
        yield Processes.now()
    except (UserError, Interrupted) as error:
        error.said = store.add("dmlkd/said", 1) > 1
        _leave(store, launched.world_size())
        raise
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        _ended_by_another(store, launched.world_size(), error)
    else:
        dist.destroy_process_group()


def _environment() -> ClusterEnvironment | None:
    """What Lightning knows of whoever started this process as one of several; None: it is alone."""
    match launcher():
        case "torchrun":
            return TorchElasticEnvironment()
        case "srun":
            try:
                return SLURMEnvironment(auto_requeue=False)
            except RuntimeError as error:
                raise UserError(" ".join(str(error).split())) from None
        case None:
            return None


def _joined(launched: ClusterEnvironment) -> Store:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = launched.main_address, str(launched.main_port)
    rank, size = launched.global_rank(), launched.world_size()
    store: Store = next(rendezvous("env://", rank, size))[0]
    # Tensors on the CPU go through gloo, so that nothing that is said beside the training waits for the GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("dmlkd", store), rank=rank, world_size=size)
    return store


def _leave(store: Store, size: int) -> None:
    """Leave the group, whereupon the others' next exchange fails, and give them time to end as this one does."""
    if torch.cuda.is_available():  # there, leaving waits for work that may never end; the launcher ends the others
        return
    dist.destroy_process_group()
    with suppress(dist.DistError, RuntimeError):
        if store.add("dmlkd/left", 1) == size:
            store.set("dmlkd/all left", "")
        store.wait(["dmlkd/all left"], _FAREWELL)


def _ended_by_another(store: Store, size: int, error: RuntimeError) -> NoReturn:
    message = "another process of this run has ended; go on with dmlkd train --resume, as many processes as before"
    ended = TrainingError(message)
    with suppress(dist.DistError, RuntimeError):  # the first process may be gone, and the store with it
        ended.said = store.add("dmlkd/said", 1) > 1
        _leave(store, size)
    raise ended from error


class _Environment(ClusterEnvironment):
    """For Lightning: the processes as they are."""

    def __init__(self, processes: Processes, local_size: int) -> None:
        self._processes = processes
        self._local_size = local_size

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return True

    @property
    @override
    def main_address(self) -> str:
        return os.environ["MASTER_ADDR"]

    @property
    @override
    def main_port(self) -> int:
        return int(os.environ["MASTER_PORT"])

    @staticmethod
    @override
    def detect() -> bool:
        return Processes.now().several

    @override
    def world_size(self) -> int:
        return self._processes.size

    @override
    def set_world_size(self, size: int) -> None:
        pass

    @override
    def global_rank(self) -> int:
        return self._processes.rank

    @override
    def set_global_rank(self, rank: int) -> None:
        pass

    @override
    def local_rank(self) -> int:
        own = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
        return int(own) if own else self._processes.rank % self._local_size

    @override
    def node_rank(self) -> int:
        return self._processes.rank // self._local_size


def check(train: TrainConfig) -> None:
    """Refuse settings that several processes cannot run with.

    Raises:
        ConfigError: naming the setting.
    """
    processes = Processes.now()
    if not processes.several:
        return
    if train.batch_size % processes.size:
        message = f"batch_size is that of all processes, so it must be a multiple of {processes.size}"
        raise ConfigError(f"{message}, got {train.batch_size}", ("train", "batch_size"))
    on_gpu = train.accelerator == "cuda" or (train.accelerator == "auto" and torch.cuda.is_available())
    if train.accelerator == "mps" or (train.accelerator == "auto" and torch.backends.mps.is_available()):
        raise ConfigError("several processes need cpu or cuda, an mps device is one", ("train", "accelerator"))
    if on_gpu and torch.cuda.device_count() < _local_size(processes):
        message = f"{_local_size(processes)} processes a machine need as many GPUs, here are"
        raise ConfigError(f"{message} {torch.cuda.device_count()}", ("train", "accelerator"))
    if train.sync_batch_norm and not on_gpu:
        message = "torch synchronises batch norm on GPUs alone; take model.frozen_batch_norm or leave it out"
        raise ConfigError(message, ("train", "sync_batch_norm"))
    if train.sync_batch_norm and train.chunk_size is not None:
        message = "batch norm cannot be synchronised in chunks: processes may have different numbers of them"
        raise ConfigError(message, ("train", "sync_batch_norm"))


def trainer_arguments(train: TrainConfig) -> dict[str, Any]:
    """How Lightning's Trainer runs here: this process alone, or one of several with DistributedDataParallel."""
    processes = Processes.now()
    if not processes.several:
        return {"devices": 1}
    local_size = _local_size(processes)
    return {
        "devices": local_size,
        "num_nodes": processes.size // local_size,
        "strategy": DDPStrategy(
            cluster_environment=_Environment(processes, local_size),
            find_unused_parameters=True,  # a backbone that waits for its head, a head whose weight is 0
            init_sync=False,  # all began alike, which was checked, or with one checkpoint
        ),
        "sync_batchnorm": train.sync_batch_norm,
    }


def _local_size(processes: Processes) -> int:
    """How many processes each machine has.

    Raises:
        UserError: if not all have equally many.
    """
    nodes = int(os.environ.get("SLURM_NNODES", 1))
    size = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or max(processes.size // nodes, 1)
    if processes.size % size:
        raise UserError(f"all machines must have equally many processes, this has {size} of {processes.size}")
    return size
