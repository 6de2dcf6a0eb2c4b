"""Taking results out: the embeddings of a data set."""

from dmlkd.export.embeddings import embed

__all__ = ["embed"]
