import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from retrieval_cases import clustered

from dmlkd.retrieval import evaluate

METRICS = ["recall@1", "map@r", "map", "mrr", "nmi", "auroc"]

WORKER = f"""
import json, sys
import numpy as np, torch
import torch.distributed as dist
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.distributed import gather_rows

torch.set_num_threads(1)
rank, size, port, data, out, shares = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], sys.argv[5], sys.argv[6]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{{port}}", rank=rank, world_size=size)
with np.load(data) as file:
    z, y = torch.from_numpy(file["z"]), torch.from_numpy(file["y"])
rows = torch.tensor(json.loads(shares)[rank], dtype=torch.int64)
got = gather_rows(z[rows], y[rows], rows)
assert torch.equal(got.embeddings, z) and torch.equal(got.labels, y) and torch.equal(got.rows, torch.arange(len(z)))
metrics = {METRICS!r}
scores = evaluate(got.embeddings, got.labels, metrics=metrics, group=dist.group.WORLD, block=16)
each = {{name: values.tolist() for name, values in scores.per_query.items()}}
sampled = dict(evaluate(got.embeddings, got.labels, metrics=["map@r"], group=dist.group.WORLD, sample=20))
found = evaluate(got.embeddings, got.labels, metrics=["map@r"], group=dist.group.WORLD, index="HNSW8").search_recall
result = {{"values": dict(scores), "each": each, "queries": scores.queries, "sampled": sampled, "search_recall": found}}
open(f"{{out}}/{{rank}}.json", "w").write(json.dumps(result))
dist.destroy_process_group()
"""


def run(tmp_path: Path, z, y, shares):
    np.savez(tmp_path / "data.npz", z=z, y=y)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "error", "-c", WORKER]
    rest = [str(len(shares)), str(port), str(tmp_path / "data.npz"), str(tmp_path), json.dumps(shares)]
    started = [subprocess.Popen([*command, str(rank), *rest], stderr=subprocess.PIPE) for rank in range(len(shares))]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(len(shares))]


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_what_one_gives_to_the_last_bit(tmp_path, processes):
    """Shares are uneven; with three, one is empty, and two have rows in common, as a sampler's padding leaves them."""
    z, y = clustered(101, 6, 60)  # so many classes that some have a single image
    z[50:60] = z[40:50]
    shares = [list(range(60)), list(range(55, 101))] if processes == 2 else [list(range(100, -1, -1)), [], [3, 100, 3]]
    one = evaluate(z, y, metrics=METRICS)
    for result in run(tmp_path, z, y, shares):
        assert result["values"] == dict(one)
        assert result["queries"] == one.queries < 101
        for name, values in one.per_query.items():
            np.testing.assert_array_equal(result["each"][name], values)
        assert result["sampled"] == dict(evaluate(z, y, metrics=["map@r"], sample=20))
        assert result["search_recall"] == evaluate(z, y, metrics=["map@r"], index="HNSW8").search_recall
