import numpy as np
import pytest

from dmlkd.errors import UserError
from dmlkd.retrieval.metrics import Metric, depths, parse


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("Recall@10", Metric("recall", 10)),
        ("cmc@1", Metric("recall", 1)),
        ("map", Metric("map")),
        ("map@1000", Metric("map", 1000)),
        ("map@r", Metric("map@r")),
        ("fnmr@fmr=0.01", Metric("fnmr", 0, 0.01)),
        ("fnmr@fmr=1e-3", Metric("fnmr", 0, 0.001)),
    ],
)
def test_names_are_read_in_any_case(name, metric):
    assert parse(name) == metric


@pytest.mark.parametrize(
    "name", ["recall", "recall@", "recall@-1", "recall@01", "mrr@5", "nmi@1", "fnmr", "fnmr@0.1", ""]
)
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="unknown metric"):
        parse(name)


def test_no_more_neighbours_are_fetched_than_the_metrics_need():
    to_find = np.array([1, 5, 40])
    assert depths([parse("recall@1")], to_find, 100).tolist() == [1, 1, 1]
    assert depths([parse("recall@8"), parse("map@r")], to_find, 100).tolist() == [8, 8, 40]
    assert depths([parse("recall@8"), parse("map")], to_find, 100).tolist() == [100] * 3
    assert depths([parse("recall@800")], to_find, 100).tolist() == [100] * 3
