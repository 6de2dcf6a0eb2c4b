"""Scikit-learn's bundled handwritten digits: 1,797 real scans of 8x8 pixels, no download."""

import numpy as np

from dmlkd.data.table import ImageTable, strings


def digits() -> ImageTable:
    """Read the digits; train on classes 0 to 4 (901 images), test on the unseen 5 to 9 (896 images).

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    https://doi.org/10.24432/C50P49, as in :func:`sklearn.datasets.load_digits`. The scans have 17 grey levels, 0 to
    16; they are stored times 15.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    labels = scans.target.astype(np.int64)
    return ImageTable(
        paths=strings([f"digits/{label}/{row:04d}" for row, label in enumerate(labels)]),
        labels=labels,
        split=strings(["train" if label < 5 else "test" for label in labels]),
        class_names=strings([str(label) for label in range(10)]),
        pixels=(scans.images * 15).astype(np.uint8)[:, None],
    )
