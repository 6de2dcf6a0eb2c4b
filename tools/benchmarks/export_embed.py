"""``embed_to`` beside the bare forward loop on the same images, and its peak memory as the rows grow.

python tools/benchmarks/export_embed.py [--images 20000] [--rows 10000,100000,1000000] [--repeats 3] [--out result.json]
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import in_child, measured, parser, show

NETWORKS = [("convnet4", 1, 28, 1), ("resnet18", 3, 64, 20)]  # the last: how many times fewer images


class MadeUp:
    """Rows whose images are computed from their number, so that nothing but the embeddings grows."""

    def __init__(self, count: int, channels: int, size: int) -> None:
        self.count = count
        self.noise = torch.rand(1024, channels, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.count

    def images(self, rows):
        return self.noise[torch.as_tensor(rows) % len(self.noise)]

    def identities(self, start: int, stop: int):
        from dmlkd.export.rows import Identities

        names = [f"image-{row:09d}" for row in range(start, stop)]
        return Identities(names, names, np.arange(start, stop) // 10)


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--images", type=int, default=20_000)
    options_of.add_argument("--rows", default="10000,100000,1000000")
    options_of.add_argument("--repeats", type=int, default=3)
    options = options_of.parse_args()
    if options.task:
        print(json.dumps({"throughput": throughput, "memory": memory}[options.task](**json.loads(options.arguments))))
        return
    rows: list[dict[str, object]] = []
    for name, channels, size, fewer in NETWORKS:
        count = max(512, options.images // fewer)
        given = {"name": name, "channels": channels, "size": size, "count": count, "repeats": options.repeats}
        rows.append({"what": f"{name}, {size} px, {count} images", **in_child(__file__, "throughput", {}, **given)})
        show(rows, options.out, batch_size=256)
    for count in map(int, options.rows.split(",")):
        rows.append({"what": f"memory, {count} rows", **in_child(__file__, "memory", {}, count=count)})
        show(rows, options.out, batch_size=256)


def throughput(*, name: str, channels: int, size: int, count: int, repeats: int) -> dict[str, float]:
    from dmlkd.export import embed_to
    from dmlkd.models import EmbeddingModel

    model = EmbeddingModel(name, dim=128, in_channels=channels).eval()
    rows = MadeUp(count, channels, size)

    @torch.no_grad()
    def bare() -> None:
        torch.cat([model(rows.images(range(s, min(s + 256, count)))) for s in range(0, count, 256)])

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            embed_to(model, rows, Path(folder) / "out")

    bare()
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(repeats):  # in turns, so that what else runs meets both
        seconds["bare"] += measured(bare)["seconds"]
        seconds["ours"] += measured(ours)["seconds"]
    rate = {what: count / min(times) for what, times in seconds.items()}
    return {"bare images/s": rate["bare"], "embed images/s": rate["ours"], "ratio": rate["ours"] / rate["bare"]}


def memory(*, count: int) -> dict[str, float]:
    from dmlkd.export import embed_to
    from dmlkd.models import EmbeddingModel

    model = EmbeddingModel("convnet4", dim=64, in_channels=1, backbone_args={"width": 4}).eval()
    with tempfile.TemporaryDirectory() as folder:
        embed_to(model, MadeUp(2_000, 1, 8), Path(folder) / "first", shard_rows=1_000)  # what is loaded once
        result = measured(lambda: embed_to(model, MadeUp(count, 1, 8), Path(folder) / "out", shard_rows=10_000))
        size = sum(path.stat().st_size for path in (Path(folder) / "out").iterdir())
    return {"seconds": result["seconds"][0], "peak MB": result["peak_mb"], "written MB": size / 2**20}


if __name__ == "__main__":
    main()
