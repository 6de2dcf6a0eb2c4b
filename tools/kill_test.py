"""Kill short runs with SIGKILL at random moments, resume each until it ends, and compare the bits with an unbroken run.

    python tools/kill_test.py --kills 20 --seed 0 [--config configs/plans/digits-folds.yaml] [--set data.workers=2 ...]

A plan is compared in its own metrics and in every fit. The exit code is 0 if every run that was killed left what the
unbroken run left.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPARED = ("metrics.json", "log.csv", "model/model.safetensors")
SHORT = [
    "train.epochs=4",
    "train.batch_size=48",
    "train.checkpoint_every_steps=3",
    "data.validation=0.4",
    "data.image_size=16",
    "model.backbone_args.width=8",
]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "digits.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    given = parser.parse_args()
    rng = random.Random(given.seed)  # noqa: S311
    settings = ["--config", str(given.config.resolve())]
    settings += [word for value in [*SHORT, *given.overrides] for word in ("--set", value)]
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(killed_and_compared(Path(temporary), settings, given.kills, rng))


def killed_and_compared(parent: Path, settings: list[str], kills: int, rng: random.Random) -> int:
    whole = parent / "whole"
    process = started(whole, settings)
    begun(whole, process)
    began = time.perf_counter()
    if process.wait():
        return int(process.returncode)
    work = time.perf_counter() - began
    print(f"unbroken: {work:.1f} s of work", flush=True)
    done, runs, wrong = 0, 0, 0
    while done < kills:
        folder = parent / f"killed-{runs}"
        own = 0
        while not (folder / "metrics.json").exists():
            process = started(folder, settings)
            begun(folder, process)
            began = time.perf_counter()
            try:
                process.wait(rng.uniform(0, work) if done < kills else None)
                if own == 0:  # a whole run: kills after its end would be none
                    work = min(work, time.perf_counter() - began)
            except subprocess.TimeoutExpired:
                process.kill()
                done, own = done + 1, own + 1
            if process.wait() > 0:
                return 1
        runs += 1
        different = [
            f"{place.relative_to(whole)}/{name}"
            for place in (whole, *whole.glob("fits/*"))
            for name in COMPARED
            if (place / name).exists()
            and (folder / place.relative_to(whole) / name).read_bytes() != (place / name).read_bytes()
        ]
        different += [path.name for path in folder.rglob(".*.tmp*")]
        wrong += bool(different)
        print(f"run {runs}: {own} kills, {f'differs: {different}' if different else 'same bits'}", flush=True)
    print(f"{done} kills in {runs} runs: {runs - wrong} runs with the same bits, {wrong} without")
    return 1 if wrong else 0


def begun(folder: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the run has its folder: what comes before has nothing to lose."""
    while not (folder / ".lock").exists() and process.poll() is None:
        time.sleep(0.005)


def started(folder: Path, settings: list[str]) -> "subprocess.Popen[bytes]":
    """The run, begun or resumed."""
    (folder / ".lock").unlink(missing_ok=True)  # nobody holds it; it tells when the run is at work
    begun_before = (folder / "config.yaml").exists() or (folder / "plan.yaml").exists()
    how = ["--resume", str(folder)] if begun_before else [*settings, "--out", str(folder)]
    if not begun_before:
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "dmlkd", "train", *how]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
