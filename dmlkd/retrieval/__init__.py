"""Retrieval measured on embeddings: arrays in, scores out. Needs neither a model nor the trainer."""

from dmlkd.retrieval.evaluation import DEFAULT_METRICS, Scores, evaluate

__all__ = ["DEFAULT_METRICS", "Scores", "evaluate"]
