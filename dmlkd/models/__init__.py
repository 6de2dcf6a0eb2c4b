"""Embedding models: trunk, pooling, head, unit length; how their images are prepared."""

from dmlkd.models.backbones import StageMaps, Trunk, backbone_names, build_trunk, compile_trunks
from dmlkd.models.classes import ClassHead, ClassifyingModel, ClassScores, load_classes, save_classes
from dmlkd.models.embedding import EmbeddingModel
from dmlkd.models.fingerprint import fingerprint
from dmlkd.models.preparing import Preparation, prepared_by

__all__ = [
    "ClassHead",
    "ClassScores",
    "ClassifyingModel",
    "EmbeddingModel",
    "Preparation",
    "StageMaps",
    "Trunk",
    "backbone_names",
    "build_trunk",
    "compile_trunks",
    "fingerprint",
    "load_classes",
    "prepared_by",
    "save_classes",
]
