"""Embedding models: trunk, pooling, head, unit length; how their images are prepared."""

from dmlkd.models.backbones import backbone_names, build_trunk
from dmlkd.models.classes import ClassHead, ClassifyingModel, ClassScores, load_classes, save_classes
from dmlkd.models.cost import Cost, cost, images_per_second
from dmlkd.models.embedding import EmbeddingModel
from dmlkd.models.exiting import ExitingModel, embedding_model, exits_of
from dmlkd.models.fingerprint import fingerprint
from dmlkd.models.preparing import Preparation, prepared_by
from dmlkd.models.trunk import Trunk, compile_trunks

__all__ = [
    "ClassHead",
    "ClassScores",
    "ClassifyingModel",
    "Cost",
    "EmbeddingModel",
    "ExitingModel",
    "Preparation",
    "Trunk",
    "backbone_names",
    "build_trunk",
    "compile_trunks",
    "cost",
    "embedding_model",
    "exits_of",
    "fingerprint",
    "images_per_second",
    "load_classes",
    "prepared_by",
    "save_classes",
]
