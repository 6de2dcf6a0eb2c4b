"""Embedding to disk: shard by shard, kept through a kill, by one process or several."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from dmlkd.data.loading import clear_errors
from dmlkd.errors import UserError, suggestion
from dmlkd.export.job import Job, Place, digest, file_format
from dmlkd.export.rows import Rows
from dmlkd.export.shards import DType, encode, write_shard
from dmlkd.models import fingerprint

SHARD_ROWS = 100_000


def embed_to(
    model: nn.Module,
    rows: Rows,
    out: Path,
    *,
    transform: str = "",
    dtype: DType = "float32",
    dim: int | None = None,
    files: str | None = None,
    shard_rows: int = SHARD_ROWS,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    share: tuple[int, int] = (0, 1),
) -> bool:
    """Embed rows to files, in their order and each once.

    Interrupted, the same call goes on where it was: shards that are finished and unharmed are kept. The result is the
    same to the byte.

    Args:
        model: images (B, C, H, W) in, embeddings (B, D) of unit length out.
        rows: what to embed.
        out: a folder of shards, new, empty or of the same job; or one file ending in .safetensors, .parquet, .npy or
            .npz, which is held in memory until it is written.
        transform: how images are prepared, in words, for the manifest.
        dtype: "float32", "float16" or "int8".
        dim: how many of the first dimensions to keep, scaled to unit length again; None: all.
        files: format of a folder's shards; None: Parquet.
        shard_rows: rows a shard of a folder.
        batch_size: images at a time.
        workers: processes that load images; 0: this one.
        device: where to run; None: where the model's parameters are.
        share: which of how many processes this is; each makes every n-th shard.

    Returns:
        Whether all shards are there and the manifest is written: False if other processes are not done.

    Raises:
        UserError: for a bad number or name, or if another job's files are there.
    """
    job = make_job(model, rows, out, transform=transform, dtype=dtype, dim=dim, files=files, shard_rows=shard_rows)
    place = Place(out)
    place.open(job)
    todo = unfinished(place, job, share)
    for shard, embeddings in embedded(model, rows, job, todo, batch_size=batch_size, workers=workers, device=device):
        save_shard(place, job, shard, embeddings, rows)
    return place.finish(job)


def make_job(
    model: nn.Module,
    rows: Rows,
    out: Path,
    *,
    transform: str,
    dtype: DType,
    dim: int | None,
    files: str | None,
    shard_rows: int,
) -> Job:
    """What :func:`embed_to` is asked for, checked.

    Raises:
        UserError: for a bad number or name.
    """
    if dtype not in get_args(DType):
        raise UserError(f"unknown dtype {dtype!r}{suggestion(dtype, get_args(DType))}")
    if shard_rows < 1:
        raise UserError(f"shard_rows must be at least 1, got {shard_rows}")
    if not len(rows):
        raise UserError("there are no rows to embed")
    full = _dims(model, rows)
    if dim is not None and not 1 <= dim <= full:
        raise UserError(f"dim must be from 1 to {full}, which the model gives, got {dim}")
    kind = file_format(out, files)
    sha256, labelled = digest(rows)
    return Job(
        rows=len(rows),
        rows_sha256=sha256,
        labels=labelled,
        model=fingerprint(model),
        transform=transform,
        dim=dim or full,
        dtype=dtype,
        files=kind,
        shard_rows=len(rows) if Place(out).single else shard_rows,
    )


def unfinished(place: Place, job: Job, share: tuple[int, int] = (0, 1)) -> list[int]:
    """The shards of a process's share that are still to be made.

    Raises:
        UserError: unless ``share`` is (i, n) with 0 <= i < n.
    """
    rank, count = share
    if not 0 <= rank < count:
        raise UserError(f"share must be (i, n) with 0 <= i < n, got {share}")
    return [shard for shard in range(rank, job.shards, count) if not place.finished(job, shard)]


def save_shard(place: Place, job: Job, shard: int, embeddings: NDArray[np.float32], rows: Rows) -> None:
    """Write one shard and its record."""
    span = job.span(shard)
    encoded = encode(embeddings, job.dtype, job.dim)
    written = write_shard(place.stem(shard), job.files, encoded, rows.identities(span.start, span.stop))
    place.finish_shard(job, shard, written)


@torch.no_grad()
def embedded(
    model: nn.Module,
    rows: Rows,
    job: Job,
    shards: Sequence[int],
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Embed shards, one after the other; batches do not run over the end of a shard.

    So the numbers of a shard depend on neither the shards before it nor who makes them.

    Raises:
        UserError: if ``batch_size`` is below 1 or an embedding is not finite.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    device = _device(model) if device is None else torch.device(device)
    loader: DataLoader[Tensor] = DataLoader(
        _Batches(rows),
        batch_sampler=_Spans([job.span(shard) for shard in shards], batch_size),
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    was_training = model.training
    model.eval().to(device)
    try:
        batches = iter(loader)
        for shard in shards:
            span = job.span(shard)
            out: NDArray[np.float32] | None = None
            for start in range(0, len(span), batch_size):
                with clear_errors():
                    images = next(batches)
                z = model(images.to(device, non_blocking=True)).float().cpu().numpy()
                if out is None:
                    out = np.empty((len(span), z.shape[1]), np.float32)
                out[start : start + len(z)] = z
            assert out is not None
            if not np.isfinite(out).all():
                row = span.start + int(np.flatnonzero(~np.isfinite(out).all(axis=1))[0])
                raise UserError(f"the embedding of row {row} is not finite")
            yield shard, out
    finally:
        model.train(was_training)


class _Batches(Dataset[Tensor]):
    """Rows that are asked for by the batch."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Tensor:
        return self.rows.images([row])

    def __getitems__(self, rows: list[int]) -> Tensor:
        return self.rows.images(rows)


class _Spans(Sampler[list[int]]):
    """Each span cut into batches."""

    def __init__(self, spans: Sequence[range], size: int) -> None:
        self.spans = spans
        self.size = size

    def __iter__(self) -> Iterator[list[int]]:
        for span in self.spans:
            for start in range(span.start, span.stop, self.size):
                yield list(range(start, min(start + self.size, span.stop)))


def _as_it_is(batch: Any) -> Any:
    return batch


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def _dims(model: nn.Module, rows: Rows) -> int:
    """D, of an embedding model as it says, of another one as the first image shows."""
    said = getattr(model, "dim", None)
    if isinstance(said, int):
        return said
    was_training = model.training
    model.eval()
    try:
        return int(model(rows.images([0]).to(_device(model))).shape[1])
    finally:
        model.train(was_training)
