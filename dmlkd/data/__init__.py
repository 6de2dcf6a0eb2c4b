"""Images: one table type, a reader per official layout, one dataset class, sampling, transforms."""

from dmlkd.data.dataset import ImageDataset
from dmlkd.data.digits import digits
from dmlkd.data.noise import NoiseKind, noisy_labels
from dmlkd.data.omniglot import omniglot_small
from dmlkd.data.sampling import ClassBalancedBatchSampler
from dmlkd.data.splits import DataSplits, split_classes
from dmlkd.data.table import ImageTable

__all__ = [
    "ClassBalancedBatchSampler",
    "DataSplits",
    "ImageDataset",
    "ImageTable",
    "NoiseKind",
    "digits",
    "noisy_labels",
    "omniglot_small",
    "split_classes",
]
