"""``dmlkd embed`` on two workers of Ray against the local engine, on the same files: images a second, and the bytes.

python tools/benchmarks/export_ray.py [--images 20000] [--size 64] [--repeats 3] [--out result.json]

A cluster is started before the clock. Each Ray worker loads torch and the model, which is in its time: that is what a
small job pays. One thread each, so that two workers have the two cores that one local process has, too.
"""

import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from harness import parser, show
from PIL import Image

from dmlkd.data.transforms import plain
from dmlkd.export import ImageRows, embed_to, read_table
from dmlkd.export.on_ray import embed_on_ray
from dmlkd.models import EmbeddingModel, prepared_by


def main() -> None:
    """Measure, the engines in turn."""
    options_of = parser(__doc__)
    options_of.add_argument("--images", type=int, default=20000)
    options_of.add_argument("--size", type=int, default=64)
    options_of.add_argument("--repeats", type=int, default=3)
    options = options_of.parse_args()
    import ray

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = EmbeddingModel("convnet4", dim=64, in_channels=3, backbone_args={"width": 64}).eval()
    preparation = prepared_by(plain, image_size=options.size, channels=3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = written(folder / "images", options.images, options.size, preparation.dataset)
        found: dict[str, list[float]] = {"local": [], "ray": []}
        for repeat in range(options.repeats):
            for engine in found:
                started = time.perf_counter()
                out = folder / f"{engine}-{repeat}"
                if engine == "local":
                    embed_to(model, rows, out, shard_rows=1000)
                else:
                    embed_on_ray(model, rows, out, shard_rows=1000, workers=2)
                found[engine].append(options.images / (time.perf_counter() - started))
        same = contents(folder / "local-0") == contents(folder / "ray-0")
    best = {engine: max(rates) for engine, rates in found.items()}
    row = {"images": options.images, "px": options.size, "local images/s": best["local"], "ray images/s": best["ray"]}
    show([{**row, "ray of local": best["ray"] / best["local"], "same bytes": same}], options.out)
    ray.shutdown()


def written(folder: Path, images: int, size: int, dataset: object) -> ImageRows:
    """Files of noise."""
    rng = np.random.default_rng(0)
    for n in range(images):
        path = folder / f"{n % 50:02d}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(path)
    return read_table(folder).rows(dataset)


def contents(out: Path) -> dict[str, bytes]:
    """Of every shard."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


if __name__ == "__main__":
    main()
