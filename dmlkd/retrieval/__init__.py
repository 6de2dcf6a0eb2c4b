"""Retrieval measured on embeddings: arrays in, scores out. Needs neither a model nor the trainer."""

from dmlkd.retrieval.approximate import Index
from dmlkd.retrieval.comparison import Comparison, compare
from dmlkd.retrieval.evaluation import DEFAULT_METRICS, evaluate
from dmlkd.retrieval.intervals import bootstrap_interval
from dmlkd.retrieval.scores import Scores

__all__ = ["DEFAULT_METRICS", "Comparison", "Index", "Scores", "bootstrap_interval", "compare", "evaluate"]
