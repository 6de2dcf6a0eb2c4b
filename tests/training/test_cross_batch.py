"""CrossBatchMemory goes on from a checkpoint as if it had never stopped."""

import torch
from pytorch_metric_learning import losses

from dmlkd.training.cross_batch import CrossBatchMemory

LABELS = torch.arange(6) // 2


def memory() -> CrossBatchMemory:
    return CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=4, memory_size=10)


def test_a_restored_memory_gives_the_same_losses():
    first, restored = memory(), memory()
    for _ in range(3):  # 18 embeddings: the queue of 10 has come round
        first(torch.randn(6, 4), LABELS)
    restored.load_state_dict(first.state_dict())
    for _ in range(3):
        z = torch.randn(6, 4)
        assert first(z, LABELS) == restored(z, LABELS)


def test_it_is_the_librarys_otherwise():
    ours, theirs = memory(), losses.CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=4, memory_size=10)
    for _ in range(3):
        z = torch.randn(6, 4)
        assert ours(z, LABELS) == theirs(z, LABELS)
