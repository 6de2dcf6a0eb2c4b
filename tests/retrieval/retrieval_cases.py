"""Embeddings to evaluate: drawn by hypothesis, with few distinct values so that ties abound."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def labelled(draw, *, min_rows=2, max_rows=14, zero=False):
    """(embeddings, labels): integer grids or noise, rows repeated, classes of one image among them."""
    n = draw(st.integers(min_rows, max_rows))
    d = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z = rng.integers(-2, 3, size=(n, d)).astype(np.float64) if draw(st.booleans()) else rng.standard_normal((n, d))
    if not zero:
        z[~z.any(axis=1)] = 1.0
    if draw(st.booleans()):
        z = z[rng.integers(n, size=n)]
    z = z.astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))
    labels = rng.integers(draw(st.integers(1, n)), size=n) + draw(st.sampled_from([0, 2**24, -3, 2**53]))
    return z, labels.astype(np.int64)


def clustered(n, d, classes, *, noise=1.0, seed=0):
    """Classes around random centres, float32."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(classes, size=n))
    z = rng.standard_normal((classes, d))[labels] + noise * rng.standard_normal((n, d))
    return z.astype(np.float32), labels
