"""Online batch diffusion (OBD-SD): method A2."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from dmlkd.distill.checks import below, one_of, positive, whole
from dmlkd.distill.functional import ListComparison, divergence_from_lists, left_out
from dmlkd.distill.method import DistillationMethod
from dmlkd.signals import Batch, Signals

Normalisation = Literal["symmetric", "random_walk"]


def diffused_lists(
    similarity: Tensor,
    *,
    omega: float,
    temperature: float = 1.0,
    graph_temperature: float | None = None,
    neighbours: int | None = None,
    steps: int | None = None,
    normalisation: Normalisation = "symmetric",
) -> Tensor:
    r"""Similarity lists, each mixed with those of the images near it on the batch's graph.

    .. math:: F = (1 - \omega)(I - \omega P)^{-1}, \qquad P = D^{-1/2} A D^{-1/2}, \qquad
              A_{ij} = e^{\tilde S_{ij} / \tau_g} \text{ for } j \ne i, \; A_{ii} = 0

    and the lists are the rows of :math:`F L`, divided by their sums, :math:`L_{ij} = e^{\tilde S_{ij} / \tau}`. Our
    reading of Zeng et al. 2022 (https://arxiv.org/abs/2211.07566): "F times A" is the matrix product, as in the
    authors' code (https://github.com/ZelongZeng/OBD-SD_Pytorch), since what diffuses are lists. Like there, what
    diffuses is the whole list, with the pair (i, i) if the similarity has it, while the graph has no loops and is
    the only thing that ``neighbours`` thins out. So at omega = 0 the result is the row-normalised L: the teacher's
    list of method A1.

    Their code walks at random: ``normalisation="random_walk"`` has P = D^-1 A, and the rows of L divided by their sums
    beforehand. The two differ by weights :math:`\sqrt{D_{ii}}`, and not at all where all degrees are equal.

    Args:
        similarity: (..., B, B) symmetric similarities; -inf where a pair is left out of the graph and of the lists.
        omega: 0 <= omega < 1, the share that walks on at each step.
        temperature: tau of the lists.
        graph_temperature: tau_g of the graph; None: tau.
        neighbours: keep the pairs of the graph in which either image is among the other's so many nearest, or ties with
            the last of them; None, or B - 1 or more: all.
        steps: the power series :math:`(1 - \omega) \sum_{s=0}^{t} (\omega P)^s` up to t = ``steps`` instead of the
            exact solution.
        normalisation: "symmetric" or "random_walk".

    Returns:
        (..., B, B) lists in the similarity's type, without gradient. Each sums to 1, but one of an image that has no
        pair at all is 0.

    >>> s = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]])
    >>> diffused_lists(s, omega=0.5, temperature=0.2)[0]  # image 2 is near image 1, which is near image 0
    tensor([0.5089, 0.4314, 0.0597])
    >>> torch.softmax(s[0] / 0.2, 0)
    tensor([0.6182, 0.3749, 0.0069])
    """
    with torch.no_grad(), torch.autocast(similarity.device.type, enabled=False):
        similarity = similarity if similarity.dtype == torch.float64 else similarity.float()
        log_lists = similarity / temperature
        log_sums = _log_sums(log_lists)
        lists = seed = torch.exp(log_lists - log_sums)
        graph = _graph(similarity, neighbours) / (temperature if graph_temperature is None else graph_temperature)
        log_degrees = _log_sums(graph)
        if normalisation == "symmetric":
            walk = torch.exp(graph - (log_degrees + log_degrees.mT) / 2)
            seed = lists * torch.exp(log_sums - log_sums.amax(-2, keepdim=True))
        else:
            walk = torch.exp(graph - log_degrees)
        if steps is None:
            identity = torch.eye(similarity.shape[-1], dtype=similarity.dtype, device=similarity.device)
            diffused = torch.linalg.solve(identity - omega * walk, seed)
        else:
            diffused = seed
            for _ in range(steps):
                diffused = seed + omega * (walk @ diffused)
        diffused = diffused.clamp_min(0).masked_fill(similarity == -math.inf, 0)
        total = diffused.sum(-1, keepdim=True)
        return torch.where(total > 0, diffused / total.clamp_min(torch.finfo(total.dtype).tiny), lists)


def _graph(similarity: Tensor, neighbours: int | None) -> Tensor:
    size = similarity.shape[-1]
    diagonal = torch.eye(size, dtype=torch.bool, device=similarity.device)
    graph = similarity.masked_fill(diagonal, -math.inf)
    if neighbours is None or neighbours >= size - 1:
        return graph
    near = graph >= graph.topk(neighbours, dim=-1).values[..., -1:]
    return graph.masked_fill(~(near | near.mT), -math.inf)


def _log_sums(log: Tensor) -> Tensor:
    """(..., B, 1) log-sum-exp of the rows; 0 for a row that is -inf throughout."""
    sums = torch.logsumexp(log, -1, keepdim=True)
    return sums.masked_fill(sums == -math.inf, 0)


class OnlineBatchDiffusion(DistillationMethod):
    r"""Pull the student's similarity lists to the teacher's, diffused over the batch's graph (OBD-SD).

    Method A1 with :func:`~dmlkd.distill.diffused_lists` for the teacher's lists; Zeng et al. 2022,
    https://arxiv.org/abs/2211.07566. In their code the weight is 75 to 1000 with a linear ramp, the temperatures are 1
    (the graph's 0.005 on Stanford Online Products), omega is 0.99 by default and on Cars196, 0.3 on CUB-200-2011 and
    0.5 on Stanford Online Products, and the normalisation is "random_walk".

    Args:
        omega: 0 <= omega < 1; at 0 the loss is that of :class:`~dmlkd.distill.ListwiseSelfDistillation`.
        temperature: tau > 0 of both lists; the loss is multiplied by its square.
        graph_temperature: tau_g > 0 of the graph; None: ``temperature``.
        neighbours: k >= 1, of the graph; None: all.
        steps: t >= 1 of the truncated power series; None: the exact solution.
        normalisation: of the graph, "symmetric" or "random_walk".
        include_self: whether image i's list holds i itself, as published.
        comparison: "kl", "reverse_kl" or "js", as of :func:`~dmlkd.distill.listwise_divergence`.
        mask_duplicates: leave pairs of one image drawn twice out of the graph and of all lists.

    Raises:
        ValueError: for a bad argument, naming it.

    >>> obd = OnlineBatchDiffusion(omega=0.5, temperature=0.2)
    >>> z = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
    >>> print(f"{obd(student=z, teacher=z):.4f}")
    0.0109
    """

    def __init__(
        self,
        *,
        omega: float = 0.99,
        temperature: float = 1.0,
        graph_temperature: float | None = None,
        neighbours: int | None = None,
        steps: int | None = None,
        normalisation: Normalisation = "symmetric",
        include_self: bool = True,
        comparison: ListComparison = "kl",
        mask_duplicates: bool = True,
    ) -> None:
        super().__init__()
        self.omega = below("omega", omega, 0, 1)
        self.temperature = positive("temperature", temperature)
        self.graph_temperature = None if graph_temperature is None else positive("graph_temperature", graph_temperature)
        self.neighbours = neighbours if neighbours is None else whole("neighbours", neighbours)
        self.steps = steps if steps is None else whole("steps", steps)
        self.normalisation: Normalisation = one_of("normalisation", normalisation, get_args(Normalisation))
        self.include_self = include_self
        self.comparison: ListComparison = one_of("comparison", comparison, get_args(ListComparison))
        self.mask_duplicates = mask_duplicates

    def forward(self, *, student: Tensor, teacher: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: (B, D) embeddings of unit length, with gradient.
            teacher: (B, D') embeddings of unit length of the same images; no gradient reaches them.
            rows: (B,) indices of the images in their data set; None: no image was drawn twice.
        """
        rows = rows if self.mask_duplicates else None
        target = diffused_lists(
            self._similarity(teacher, rows),
            omega=self.omega,
            temperature=self.temperature,
            graph_temperature=self.graph_temperature,
            neighbours=self.neighbours,
            steps=self.steps,
            normalisation=self.normalisation,
        )
        return divergence_from_lists(
            student=student,
            target=target,
            rows=rows,
            temperature=self.temperature,
            include_self=self.include_self,
            comparison=self.comparison,
        )

    def _similarity(self, teacher: Tensor, rows: Tensor | None) -> Tensor:
        with torch.no_grad(), torch.autocast(teacher.device.type, enabled=False):
            teacher = teacher if teacher.dtype == torch.float64 else teacher.float()
            size = len(teacher)
            mask = left_out(size, part=slice(0, size), include_self=self.include_self, rows=rows, device=teacher.device)
            similarity = teacher @ teacher.T
            return similarity if mask is None else similarity.masked_fill(mask, -math.inf)

    @override
    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        assert teacher is not None
        loss: Tensor = self(student=student.embeddings, teacher=teacher.embeddings, rows=batch.rows)
        return loss

    @override
    def extra_repr(self) -> str:
        return f"omega={self.omega}, temperature={self.temperature}, normalisation={self.normalisation}"
