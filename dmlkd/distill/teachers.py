"""Teachers: where soft targets come from. What they say never carries a gradient."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typing_extensions import override

from dmlkd.chunks import signals_in_chunks
from dmlkd.distill.checks import one_of, whole, within
from dmlkd.signals import Batch, Need, Signals

Mode = Literal["eval", "train"]


class Lesson(NamedTuple):
    """What a teacher says of a batch of B images.

    Attributes:
        signals: one for each network that teaches, mostly one; without gradient.
        shares: the share of each in the loss of a term: sum of share times loss.
        positions: (K,) positions in the batch that ``signals`` are of, ascending; a tuple: of each network's in turn;
            None: all B.
        loss: a loss that trains the teacher itself, with gradient; None: it is not trained.
    """

    signals: tuple[Signals, ...]
    shares: tuple[float, ...] = (1.0,)
    positions: Tensor | tuple[Tensor, ...] | None = None
    loss: Tensor | None = None

    @property
    def positions_of_each(self) -> tuple[Tensor | None, ...]:
        """For each of ``signals`` the positions in the batch that it is of; None: all."""
        if isinstance(self.positions, tuple):
            return self.positions
        return (self.positions,) * len(self.signals)


class Teacher(nn.Module, ABC):
    """Base of the teachers. Its state is in ``state_dict()``, and so in the checkpoint of whatever holds it.

    Attributes:
        gives: the fields of :class:`~dmlkd.signals.Signals` that it can be asked for.
        lacks: why it cannot be asked for others, where that is worth saying.
        student_needs: fields of the student's signals that it reads.
        every_step: whether it is asked in every training step, also while its terms weigh nothing, because it learns
            or remembers something from each.
    """

    gives: frozenset[Need] = frozenset({"embeddings", "features", "logits", "subclass_logits", "stages"})
    lacks: Mapping[Need, str] = MappingProxyType({})
    student_needs: ClassVar[frozenset[Need]] = frozenset()
    every_step: ClassVar[bool] = False

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether there is something to teach yet; a term whose teacher is not ready has weight 0."""

    @property
    def dims(self) -> frozenset[int]:
        """The dimensions of the embeddings that it gives, where they are known beforehand."""
        return frozenset()

    @abstractmethod
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        """What the teacher says of a batch.

        Args:
            batch: labels and row numbers; a network is run on the images by :meth:`~dmlkd.signals.Batch.signals_of`, as
                other processes may have some of them.
            student: what the student says of the same images, with gradient.
            needs: the fields that are read of what it says; the others may be None.
        """

    def loss_parameters(self) -> Iterable[nn.Parameter]:
        """The weights of metric losses that it trains itself with."""
        return ()

    def start_epoch(self, network: nn.Module, epoch: int) -> None:
        """Called before each epoch, counted from 0, with the student as it is then. May be called twice for one."""

    def after_step(self, network: nn.Module) -> None:
        """Called after each step of the optimiser, with the student as it is then."""


class FrozenTeacher(Teacher):
    """A network that teaches as it is: a finished earlier run, say, of whatever architecture and dimension.

    It stays in its mode whatever ``train()`` is called on what holds it, and its parameters ask for no gradient.

    Args:
        network: what teaches; taken over, not copied. An attribute ``gives``, if it has one, names the fields of
            signals that it has.
        mode: "eval" or "train", the mode it runs in. In the published code of A1 it is "train", with batch norm frozen;
            with live batch norm, "train" normalises by the batch and moves the running statistics.
        chunk_size: :meth:`teach` runs the network on at most so many images at a time; None: on the whole batch.

    Raises:
        ValueError: if ``mode`` is neither, or ``chunk_size`` is not a whole number of at least 1.
    """

    def __init__(self, network: nn.Module, *, mode: Mode = "eval", chunk_size: int | None = None) -> None:
        super().__init__()
        self.mode = one_of("mode", mode, ("eval", "train"))
        self.chunk_size = None if chunk_size is None else whole("chunk_size", chunk_size)
        self.network = network.requires_grad_(False)
        self.gives = getattr(self._teaching, "gives", type(self).gives)
        self._clock = 0  # epochs or steps that the network has followed the student for
        self.train()

    @property
    @override
    def ready(self) -> bool:
        return True

    @property
    @override
    def dims(self) -> frozenset[int]:
        dim = getattr(self._teaching, "dim", None)
        return frozenset({dim} if isinstance(dim, int) else ())

    @property
    def _teaching(self) -> nn.Module:
        return self.network

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """What the network returns for the images, without gradient."""
        return self._teaching(images)

    @override
    @torch.no_grad()
    def teach(self, *, batch: Batch, student: Signals, needs: Collection[Need]) -> Lesson:
        def said(images: Tensor) -> Signals:
            return signals_in_chunks(self._teaching, images, needs, size=self.chunk_size)

        return Lesson((batch.signals_of(said, needs),))

    @override
    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in the mode given to the constructor."""
        return super().train(self.mode == "train")

    @override
    def get_extra_state(self) -> dict[str, int]:
        return {"clock": self._clock}

    @override
    def set_extra_state(self, state: dict[str, int]) -> None:
        self._clock = state["clock"]


class PreviousEpochTeacher(FrozenTeacher):
    """The student as it was at the end of the previous epoch (method A1, https://arxiv.org/abs/2206.08880).

    One copy of the network is held in memory and written over once an epoch; nothing is written to disk. In a loop of
    your own, call the teacher on the images and :meth:`update` it at the end of each epoch.

    Args:
        network: the student; it is copied. Its weights at this moment teach until the first update.
        mode: "eval" or "train", as of :class:`FrozenTeacher`.
        chunk_size: as of :class:`FrozenTeacher`.

    Raises:
        ValueError: if ``mode`` is neither.

    >>> student = nn.Linear(2, 2)
    >>> teacher = PreviousEpochTeacher(student)
    >>> teacher.ready
    False
    >>> teacher.update(student)
    >>> teacher.ready, teacher(torch.ones(1, 2)).requires_grad
    (True, False)
    """

    def __init__(self, network: nn.Module, *, mode: Mode = "eval", chunk_size: int | None = None) -> None:
        super().__init__(copy.deepcopy(network), mode=mode, chunk_size=chunk_size)

    @property
    @override
    def ready(self) -> bool:
        return self._clock > 0

    def update(self, network: nn.Module) -> None:
        """Take over the network's weights and buffers as they are now: call it at the end of an epoch."""
        self.network.load_state_dict(network.state_dict())
        self._clock += 1

    @override
    def start_epoch(self, network: nn.Module, epoch: int) -> None:
        # Once for each epoch after the first, so that a run resumed within an epoch keeps the teacher it had.
        if epoch > 0 and epoch != self._clock:
            self.update(network)
            self._clock = epoch


class SnapshotTeacher(FrozenTeacher):
    """The student as it was at the last multiple of ``every`` steps.

    Args:
        network: the student; it is copied.
        every: steps of the optimiser between two snapshots, at least 1.
        mode: "eval" or "train", as of :class:`FrozenTeacher`.
        chunk_size: as of :class:`FrozenTeacher`.

    Raises:
        ValueError: if ``every`` is not a whole number of at least 1, or for a bad ``mode`` or ``chunk_size``.
    """

    def __init__(self, network: nn.Module, *, every: int, mode: Mode = "eval", chunk_size: int | None = None) -> None:
        super().__init__(copy.deepcopy(network), mode=mode, chunk_size=chunk_size)
        self.every = whole("every", every)

    @property
    @override
    def ready(self) -> bool:
        return self._clock >= self.every

    @override
    def after_step(self, network: nn.Module) -> None:
        self._clock += 1
        if self._clock % self.every == 0:
            self.network.load_state_dict(network.state_dict())


class MovingAverageTeacher(FrozenTeacher):
    """The exponential moving average of the student's weights and buffers over the steps.

    After each step of the optimiser: average <- decay * average + (1 - decay) * student; it starts from the student
    after the first step. Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780, on torch's ``AveragedModel``.

    Args:
        network: the student; it is copied.
        decay: 0 <= decay <= 1; the average remembers about 1 / (1 - decay) steps.
        mode: "eval" or "train", as of :class:`FrozenTeacher`.
        chunk_size: as of :class:`FrozenTeacher`.

    Raises:
        ValueError: if ``decay`` is outside its range, or for a bad ``mode`` or ``chunk_size``.
    """

    def __init__(
        self, network: nn.Module, *, decay: float = 0.999, mode: Mode = "eval", chunk_size: int | None = None
    ) -> None:
        self.decay = within("decay", decay, 0, 1)
        rule = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=rule, use_buffers=True)
        super().__init__(average, mode=mode, chunk_size=chunk_size)

    @property
    @override
    def ready(self) -> bool:
        return self._clock > 0

    @property
    def averaged(self) -> nn.Module:
        """The network with the averaged weights and buffers."""
        return self.network.get_submodule("module")

    @property
    @override
    def _teaching(self) -> nn.Module:
        return self.averaged

    @override
    def after_step(self, network: nn.Module) -> None:
        self.network.update_parameters(network)  # type: ignore[operator]
        self._clock += 1
