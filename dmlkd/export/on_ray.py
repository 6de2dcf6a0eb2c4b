"""Embedding on a Ray cluster: every task makes one shard, the same to the byte as the local engine's.

A task whose worker is killed is run again by Ray. A shard is written whole or not at all under a name of its own, so a
second run of a task replaces what the first wrote, and no row can be lost or doubled. All nodes must see the folder.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmlkd.errors import UserError
from dmlkd.export.job import Job, Place
from dmlkd.export.rows import Rows
from dmlkd.export.shards import DType
from dmlkd.export.writing import SHARD_ROWS, embedded, make_job, save_shard, unfinished


def embed_on_ray(
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
    workers: int = 1,
    gpus: float = 0,
) -> None:
    """Embed rows to a folder of shards with Ray Data; the arguments but the last two are those of ``embed_to``.

    Connects to the cluster that ``ray.init`` finds, unless the caller has connected already.

    Args:
        model: images (B, C, H, W) in, embeddings (B, D) of unit length out.
        rows: what to embed; sent to the workers once, so images should be files rather than pixels.
        out: a folder that every node sees.
        transform: how images are prepared, in words.
        dtype: "float32", "float16" or "int8".
        dim: how many of the first dimensions to keep; None: all.
        files: format of the shards; None: Parquet.
        shard_rows: rows a shard: what is lost and made again when a worker dies.
        batch_size: images at a time.
        workers: processes that embed.
        gpus: of each of them.

    Raises:
        UserError: if Ray is not installed, or as :func:`~dmlkd.export.embed_to` does.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("engine ray needs Ray: pip install 'dmlkd[ray]'") from None
    job = make_job(model, rows, out, transform=transform, dtype=dtype, dim=dim, files=files, shard_rows=shard_rows)
    place = Place(out.absolute())
    place.open(job)
    todo = unfinished(place, job)
    if todo:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        given = ray.put((model.cpu().eval(), rows))
        made = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo)).map_batches(
            _Shards,
            fn_constructor_args=(given, job, out.absolute(), batch_size),
            batch_size=1,
            concurrency=min(workers, len(todo)),
            num_gpus=gpus,
        )
        made.materialize()
    if not place.finish(job):
        raise UserError(f"{out}: shards are missing: do all nodes see this folder?")


class _Shards:
    """What each worker process holds: the model, and the rows."""

    def __init__(self, given: Any, job: Job, out: Path, batch_size: int) -> None:
        import ray

        torch.set_num_threads(1)
        self.model, self.rows = ray.get(given) if isinstance(given, ray.ObjectRef) else given
        self.job = job
        self.place = Place(out)
        self.batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        todo = [int(shard) for shard in batch["shard"]]
        for shard, z in embedded(self.model, self.rows, self.job, todo, batch_size=self.batch_size, device=device):
            save_shard(self.place, self.job, shard, z, self.rows)
        return batch
