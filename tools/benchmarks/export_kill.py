"""SIGKILL to ``dmlkd embed`` at random moments of its writing, then the same command again: are the bytes the same?

python tools/benchmarks/export_kill.py [--images 4000] [--kills 10] [--out result.json]
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import parser, show
from PIL import Image


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--images", type=int, default=4000)
    options_of.add_argument("--kills", type=int, default=10)
    options = options_of.parse_args()
    moments = random.Random(options.seed)  # noqa: S311 - nothing secret
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.images)
        whole = begun(folder, "whole")
        started = time.perf_counter()
        while whole.poll() is None and not (folder / "whole" / "_manifest.json").exists():
            time.sleep(0.001)
        seconds = time.perf_counter() - started
        assert whole.wait() == 0
        expected = contents(folder / "whole")
        rows = []
        for kill in range(options.kills):
            out = f"killed-{kill}"
            process = begun(folder, out)
            moment = moments.uniform(0, seconds)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            killed = process.wait() == -signal.SIGKILL
            there = len(list((folder / out).glob("part-*.parquet")))
            subprocess.run(command(folder, out), check=True, stdout=subprocess.DEVNULL)
            row = {"killed after s": moment, "killed": killed, "shards kept": there}
            rows.append({**row, "identical": contents(folder / out) == expected})
        show(rows, options.out, images=options.images, seconds_of_writing=seconds)


def prepare(folder: Path, images: int) -> None:
    from dmlkd.models import EmbeddingModel

    torch.manual_seed(0)
    EmbeddingModel("convnet4", dim=64, in_channels=1).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for n in range(images):
        path = folder / "images" / f"{n % 50:02d}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path)


def command(folder: Path, out: str) -> list[str]:
    options = {"model": "model", "data": "images", "out": out}
    given = [word for key, value in options.items() for word in (f"--{key}", str(folder / value))]
    return [sys.executable, "-m", "dmlkd", "embed", *given, "--image-size", "28", "--shard-rows", "50"]


def begun(folder: Path, out: str) -> "subprocess.Popen[bytes]":
    """The command, as soon as its work begins: loading the libraries takes longest."""
    process = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL)
    while process.poll() is None and not (folder / out / "_job.json").exists():
        time.sleep(0.001)
    return process


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    main()
