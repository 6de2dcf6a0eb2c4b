"""On a Ray cluster of two nodes: the files of one process, also when workers are killed."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from export_cases import image_tree, saved

from dmlkd.export import ImageRows, embed_to, read_table
from dmlkd.export.on_ray import embed_on_ray
from dmlkd.models import EmbeddingModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dmlkd[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
    made.add_node(num_cpus=1, object_store_memory=80_000_000)
    ray.init(address=made.address, log_to_driver=False)
    yield ray
    ray.shutdown()
    made.shutdown()


def workers() -> list[int]:
    """Processes of this cluster's actors that embed."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if "MapWorker" in Path(f"/proc/{pid}/cmdline").read_text() and os.getpid() in ancestors(int(pid)):
                found.append(int(pid))
        except OSError:
            continue
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_killed_workers_lose_and_double_nothing(cluster, tmp_path):
    image_tree(tmp_path / "images", count=600)
    model = EmbeddingModel.from_pretrained(saved(tmp_path) / "model")
    table, ids, labelled = read_table(tmp_path / "images" / "table.csv")
    rows = ImageRows(model.preparation.dataset(table), ids=ids, labelled=labelled)
    embed_to(model, rows, tmp_path / "one", shard_rows=5, batch_size=5)
    killed = []

    def kill() -> None:
        until = time.monotonic() + 500
        while time.monotonic() < until and not (tmp_path / "out" / "_manifest.json").exists():
            if len(list((tmp_path / "out").glob("*.done.json"))) > 10 * (len(killed) + 1) and len(killed) < 2:
                for pid in workers()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    embed_on_ray(model, rows, tmp_path / "out", shard_rows=5, batch_size=5, workers=2)
    killer.join()
    assert killed
    one, out = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "out"))
    assert one == out
