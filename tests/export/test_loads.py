"""The lines that the docs show for NumPy, pandas, PyArrow and FAISS load what embed writes."""

import re
from pathlib import Path

import numpy as np
import pytest
from export_cases import image_tree, small_model

from dmlkd.export import ImageRows, embed_to, read_table

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BLOCKS = re.findall(r"^(\w+):\n\n```py\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_page_shows_the_four():
    assert [name for name, _ in BLOCKS] == ["NumPy", "pandas", "PyArrow", "FAISS"]


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_three_lines_load_the_embeddings(tmp_path, monkeypatch, name, code):
    if name == "pandas":
        pytest.importorskip("pandas")
    image_tree(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    model = small_model()
    table, ids, labelled = read_table(tmp_path / "images" / "table.csv")
    rows = ImageRows(model.preparation.dataset(table), ids=ids, labelled=labelled)
    for out in ("e", "e.npy", "e.parquet"):
        embed_to(model, rows, tmp_path / out, shard_rows=6)
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 3
    found: dict = {}
    exec(code, found)
    np.testing.assert_allclose(found["z"], np.load("e.npy"), atol=1e-6)
    if name == "FAISS":
        assert found["index"].ntotal == len(rows)
    if name == "pandas":
        assert found["frame"]["id"].tolist() == ids.tolist()
