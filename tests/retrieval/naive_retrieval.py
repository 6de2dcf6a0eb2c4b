"""Double loops written from the definitions; slow, and sharing nothing with the library but float32 rows."""

import math
from itertools import combinations

import numpy as np


def rows(embeddings, distance):
    wide = np.asarray(embeddings, np.float64)
    if distance == "cosine":
        wide = np.array([row / math.sqrt(math.fsum(v * v for v in row)) for row in wide])
    return [[float(v) for v in row] for row in wide.astype(np.float32)]


def nearness(a, b, distance):
    if distance == "euclidean":
        return -math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def ranked(queries, gallery, relevant, excluded, distance="cosine"):
    """For each query the relevance of all it is compared with, nearest first, irrelevant first among equally near."""
    out = []
    gallery_rows = rows(gallery, distance)
    for q, query in enumerate(rows(queries, distance)):
        items = [
            (-nearness(query, item, distance), bool(relevant(q, i)))
            for i, item in enumerate(gallery_rows)
            if not excluded(q, i)
        ]
        out.append([hit for _, hit in sorted(items)])
    return out


def average_precision(hits, depth, divisor):
    return sum(sum(hits[: i + 1]) / (i + 1) for i in range(min(depth, len(hits))) if hits[i]) / divisor


def metric(name, hits):
    """The value for one query, or None where there is nothing to find."""
    r = sum(hits)
    if r == 0:
        return None
    kind, _, k = name.partition("@")
    if name == "map@r":
        return average_precision(hits, r, r)
    if name == "map":
        return average_precision(hits, len(hits), r)
    if name == "mrr":
        return 1 / (1 + hits.index(True))
    if name == "r_precision":
        return sum(hits[:r]) / r
    if kind in ("recall", "cmc"):
        return float(any(hits[: int(k)]))
    if kind == "precision":
        return sum(hits[: int(k)]) / int(k)
    assert kind == "map"
    return average_precision(hits, int(k), min(r, int(k)))


def macro(values, classes):
    means = []
    for c in set(classes):
        of_class = [v for v, d in zip(values, classes, strict=True) if d == c and v is not None]
        if of_class:
            means.append(sum(of_class) / len(of_class))
    return sum(means) / len(means)


def pair_f1(labels, assigned):
    tp = fp = fn = 0
    for a, b in combinations(range(len(labels)), 2):
        same_class, same_cluster = labels[a] == labels[b], assigned[a] == assigned[b]
        tp += same_class and same_cluster
        fp += same_cluster and not same_class
        fn += same_class and not same_cluster
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def nmi(labels, assigned):
    n = len(labels)

    def entropy(values):
        return -math.fsum(c / n * math.log(c / n) for c in (values.count(v) for v in set(values)))

    pairs = list(zip(labels, assigned, strict=True))
    h, k, both = entropy(list(labels)), entropy(list(assigned)), entropy(pairs)
    return 1.0 if h + k == 0 else max(0.0, h + k - both) / ((h + k) / 2)


def verification(genuine, impostor, rate):
    auroc = sum((g > i) + 0.5 * (g == i) for g in genuine for i in impostor) / (len(genuine) * len(impostor))
    eer, fnmr_at = 1.0, 1.0
    for threshold in [*genuine, *impostor, math.inf]:
        fnmr = sum(g < threshold for g in genuine) / len(genuine)
        fmr = sum(i >= threshold for i in impostor) / len(impostor)
        eer = min(eer, max(fnmr, fmr))
        if fmr <= rate:
            fnmr_at = min(fnmr_at, fnmr)
    return auroc, eer, fnmr_at
