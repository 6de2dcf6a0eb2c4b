"""Embedding models: trunk, pooling, linear head, unit length."""

from dmlkd.models.backbones import Trunk, backbone_names, build_trunk, compile_trunks
from dmlkd.models.embedding import EmbeddingModel

__all__ = ["EmbeddingModel", "Trunk", "backbone_names", "build_trunk", "compile_trunks"]
