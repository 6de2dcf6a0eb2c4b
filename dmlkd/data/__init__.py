"""Images: one table type, a reader per official layout, one dataset class, sampling, transforms, a decoded cache."""

from dmlkd.data.cars import cars196
from dmlkd.data.cub import cub200
from dmlkd.data.dataset import ImageDataset
from dmlkd.data.digits import digits
from dmlkd.data.folder import image_folder
from dmlkd.data.inshop import inshop
from dmlkd.data.noise import NoiseKind, noisy_labels
from dmlkd.data.omniglot import omniglot, omniglot_small
from dmlkd.data.sampling import BatchShare, ClassBalancedBatchSampler, EpochBatchSampler, ShuffledBatchSampler
from dmlkd.data.sop import sop
from dmlkd.data.splits import (
    DataSplits,
    class_folds,
    hold_out_images,
    leave_domain_out,
    merged_classes,
    seen_classes,
    split_classes,
    split_images,
)
from dmlkd.data.table import ImageTable
from dmlkd.data.tabular import table_file

__all__ = [
    "BatchShare",
    "ClassBalancedBatchSampler",
    "DataSplits",
    "EpochBatchSampler",
    "ImageDataset",
    "ImageTable",
    "NoiseKind",
    "ShuffledBatchSampler",
    "cars196",
    "class_folds",
    "cub200",
    "digits",
    "hold_out_images",
    "image_folder",
    "inshop",
    "leave_domain_out",
    "merged_classes",
    "noisy_labels",
    "omniglot",
    "omniglot_small",
    "seen_classes",
    "sop",
    "split_classes",
    "split_images",
    "table_file",
]
