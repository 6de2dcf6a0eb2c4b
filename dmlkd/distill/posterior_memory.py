"""A memory of one class posterior for each row of a data set, whole or its largest entries."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmlkd.distill.checks import whole
from dmlkd.distill.memory import RowMemory


class PosteriorMemory(nn.Module):
    r"""One class posterior for each row of a data set, as log-probabilities.

    Half precision rounds a log-probability by at most :math:`2^{-11} |\log p|`, so that each probability keeps that
    relative precision however small it is, and a posterior read back differs from the one written by at most
    :math:`2^{-10} H(p)` in the sum of absolute differences, H its entropy in nats, beside the rounding of float32: the
    more certain, the more exact. In single precision it is the rounding of float32 alone.

    With ``top_k`` the k largest probabilities are kept, with their classes, and of the others their sum alone, which
    reading spreads evenly over them. With k >= C every class is kept.

    Memory: N x C x 2 bytes, and N of marks; with ``top_k`` N x (6 k + 2), and 2 N of marks. In single precision
    N x C x 4 and N x (8 k + 4). 60 000 images of 11 000 classes: 1.3 GB whole, 18 MB with k = 50.

    Args:
        rows: N, how many posteriors.
        classes: C.
        top_k: k; None: all classes.
        single: keep them in single precision.
        mapped_above: bytes; a memory above this is mapped from files, as :class:`~dmlkd.distill.RowMemory`.
        folder: of those files; None: the system's temporary folder.

    Raises:
        ValueError: for a bad number, naming it.
        OSError: if there is no room for the files.

    >>> memory = PosteriorMemory(rows=3, classes=4, top_k=1)
    >>> memory.write(torch.tensor([2]), torch.tensor([[0.7, 0.2, 0.1, 0.0]]).log())
    >>> memory.read(torch.tensor([2]))[0].exp()
    tensor([[0.7000, 0.1000, 0.1000, 0.1000]])
    """

    def __init__(
        self,
        *,
        rows: int,
        classes: int,
        top_k: int | None = None,
        single: bool = False,
        mapped_above: int = 2**30,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.classes = whole("classes", classes)
        kept = classes if top_k is None else min(whole("top_k", top_k), classes)
        whole_rows = kept == classes
        dtype = torch.float if single else torch.half
        width = kept if whole_rows else kept + 1
        self.bytes = whole("rows", rows) * (width * dtype.itemsize + (0 if whole_rows else kept * 4))
        limit = min(mapped_above, 0) if self.bytes > mapped_above else mapped_above  # both tables, or none
        self.logs = RowMemory(rows=rows, width=width, dtype=dtype, mapped_above=limit, folder=folder)
        self.which = None
        if not whole_rows:
            self.which = RowMemory(rows=rows, width=kept, dtype=torch.int32, mapped_above=limit, folder=folder)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The posteriors of some rows (B,), (B, C) log-probabilities, and which were ever written, (B,) bool.

        Those never written are uniform.
        """
        logs, known = self.logs.read(rows)
        if self.which is not None:
            which, _ = self.which.read(rows)
            every = logs[:, -1:].expand(-1, self.classes)  # unwritten rows: all zero, whatever their classes
            logs = every.scatter(1, which, logs[:, :-1])
        return F.log_softmax(logs, dim=1), known

    @torch.no_grad()
    def write(self, rows: Tensor, posteriors: Tensor) -> None:
        """Remember posteriors (B, C), as log-probabilities, for some rows (B,); of a row that is there twice, the last.

        Raises:
            ValueError: if they are of another number of classes.
        """
        if posteriors.shape != (len(rows), self.classes):
            raise ValueError(
                f"posteriors must be ({len(rows)}, {self.classes}) log-probabilities, got {tuple(posteriors.shape)}"
            )
        if self.which is not None:
            kept, which = posteriors.topk(self.which.values.shape[1], dim=1)
            others = posteriors.scatter(1, which, -torch.inf).logsumexp(dim=1, keepdim=True)
            posteriors = torch.cat([kept, others - math.log(self.classes - which.shape[1])], dim=1)
            self.which.write(rows, which)
        self.logs.write(rows, posteriors)


def one_hot_logs(labels: Tensor, classes: int) -> Tensor:
    """Log-probabilities (B, C) of the labels (B,) themselves: 0 and minus infinity."""
    return torch.full((len(labels), classes), -torch.inf, device=labels.device).scatter(1, labels[:, None], 0.0)
