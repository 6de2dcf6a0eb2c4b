"""Images a second that a loader gives, decoding and from the cache, beside ImageFolder and bare PIL decoding.

python tools/benchmarks/data_loading.py --data ../shared/data [--sizes 64,224] [--workers 0,1,2] [--images 4000]

The images are those of cars196-64px.zip, unpacked, so that all read the same files, and enlarged to 224 pixels for the
larger size (JPEG, quality 90). All give batches of 112 float images, resized and normalised for testing. Each figure is
the median of --repeats passes, after one that is not counted; a pass includes the start of its worker processes.
"""

import io
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import torch
from harness import parser, show
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dmlkd.data import image_folder
from dmlkd.data.cache import cached
from dmlkd.data.images import Preparation
from dmlkd.data.loading import loader
from dmlkd.data.preprocessing import Preprocessing
from dmlkd.data.transforms import Pipeline, Transforms, plain

BATCH = 112


def unpack(archive: Path, folder: Path, *, images: int, size: int) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for number, name in enumerate(sorted(n for n in zipped.namelist() if n.endswith(".jpg"))[:images]):
            file = folder / f"class{number % 40:02d}" / f"{number:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            content = zipped.read(name)
            if size == 64:
                file.write_bytes(content)
            else:
                Image.open(io.BytesIO(content)).resize((size, size)).save(file, quality=90)


def bare(table) -> int:
    for path in table.paths:
        with Image.open(table.root / str(path)) as image:
            image.convert("RGB").load()
    return len(table)


def passes(batches) -> int:
    return sum(len(batch[0]) for batch in batches)


def rate(work, repeats: int) -> float:
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        count = work()
        found.append(count / (time.perf_counter() - started))
    return statistics.median(found)


def rows_of(size: int, folder: Path, options) -> list[dict[str, object]]:
    table = image_folder(folder / "images", train_fraction=0)
    whole = Preprocessing(Preparation(3, square=size), plain(image_size=size, channels=3))
    untouched = Preprocessing(whole.preparation, Transforms(Pipeline([]), Pipeline([])))
    started = time.perf_counter()
    kept, _ = cached(table, whole.preparation, folder / "cache")
    built = time.perf_counter() - started
    theirs = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize((size, size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    reference = ImageFolder(folder / "images", theirs)
    rows: list[dict[str, object]] = [
        {
            "size": size,
            "path": "PIL decoding alone",
            "workers": 0,
            "images/s": rate(lambda: bare(table), options.repeats),
        }
    ]
    for workers in map(int, options.workers.split(",")):
        ways = {
            "ImageFolder + DataLoader": lambda w=workers: DataLoader(reference, BATCH, num_workers=w),
            "decoding": lambda w=workers: loader(whole.dataset(table), batch_size=BATCH, workers=w),
            "cache": lambda w=workers: loader(whole.dataset(kept), batch_size=BATCH, workers=w),
            "cache, uint8": lambda w=workers: loader(untouched.dataset(kept), batch_size=BATCH, workers=w),
        }
        found = {name: rate(lambda make=make: passes(make()), options.repeats) for name, make in ways.items()}
        rows += [
            {"size": size, "path": name, "workers": workers, "images/s": value, "x decoding": value / found["decoding"]}
            for name, value in found.items()
        ]
    rows.append({"size": size, "path": "building the cache", "workers": 0, "images/s": len(table) / built})
    return rows


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--data", default="../shared/data")
    options_of.add_argument("--sizes", default="64,224")
    options_of.add_argument("--workers", default="0,1,2")
    options_of.add_argument("--images", type=int, default=4000)
    options_of.add_argument("--repeats", type=int, default=3)
    options = options_of.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            unpack(Path(options.data) / "cars196-64px.zip", Path(folder) / "images", images=options.images, size=size)
            rows += rows_of(size, Path(folder), options)
    show(rows, options.out, images=options.images, batch=BATCH, repeats=options.repeats)


if __name__ == "__main__":
    main()
