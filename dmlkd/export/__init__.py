"""Taking results out: embeddings of data sets, models in other formats."""

from dmlkd.export.embeddings import embed
from dmlkd.export.rows import ImageRows, read_table
from dmlkd.export.writing import embed_to

__all__ = ["ImageRows", "embed", "embed_to", "read_table"]
