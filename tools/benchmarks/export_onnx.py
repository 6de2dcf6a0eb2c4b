"""ONNX beside PyTorch: the largest difference on real images, and images a second on the CPU.

python tools/benchmarks/export_onnx.py [--images 1024] [--repeats 3] [--out result.json]

The images are scikit-learn's digits, resized.
"""

import json
import tempfile
from pathlib import Path

import torch
from harness import in_child, measured, parser, show

NETWORKS = [("convnet4", 1, 28), ("resnet18", 3, 64)]


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--images", type=int, default=1024)
    options_of.add_argument("--repeats", type=int, default=3)
    options = options_of.parse_args()
    if options.task:
        print(json.dumps(task(**json.loads(options.arguments))))
        return
    rows = []
    for name, channels, size in NETWORKS:
        given = {"channels": channels, "size": size, "images": options.images, "repeats": options.repeats}
        rows.append({"what": f"{name}, {size} px", **in_child(__file__, "onnx", {}, name=name, **given)})
    show(rows, options.out, images=options.images, batch_size=64)


def task(*, name: str, channels: int, size: int, images: int, repeats: int) -> dict[str, float]:
    from dmlkd.data import digits
    from dmlkd.data.transforms import plain
    from dmlkd.export import formats
    from dmlkd.models import EmbeddingModel, prepared_by

    torch.manual_seed(0)
    model = EmbeddingModel(name, dim=128, in_channels=channels).eval()
    prepare = prepared_by(plain, image_size=size, channels=channels)
    given = torch.stack([prepare.of(i.repeat(channels, 1, 1)) for i in torch.from_numpy(digits().pixels[:images])])
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        found["largest difference"] = formats.export_onnx(model, given, path).difference
        eight = Path(folder) / "m8.onnx"
        found["int8 difference"] = formats.export_int8(model, given, eight).difference
        found["MiB"], found["int8 MiB"] = (p.stat().st_size / 2**20 for p in (path, eight))
        threads = torch.get_num_threads()
        works = {
            "torch": lambda: model.embed(given, batch_size=64),
            "onnx": lambda: formats.run_onnx(path, given, threads=threads),
            "int8": lambda: formats.run_onnx(eight, given, threads=threads),
        }
        times: dict[str, list[float]] = {what: [] for what in works}
        for _ in range(repeats + 1):
            for what, work in works.items():
                times[what] += measured(work)["seconds"]
    best = {what: min(seconds[1:]) for what, seconds in times.items()}
    found |= {f"{what} images/s": len(given) / seconds for what, seconds in best.items()}
    return found | {f"{what} of torch": best["torch"] / best[what] for what in ("onnx", "int8")}


if __name__ == "__main__":
    main()
