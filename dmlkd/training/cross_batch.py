"""Pairs with the embeddings of earlier batches: pytorch-metric-learning's memory, whole in a checkpoint."""

from typing import Any

from pytorch_metric_learning import losses
from typing_extensions import override


class CrossBatchMemory(losses.CrossBatchMemory):  # type: ignore[misc]
    """pytorch-metric-learning's ``CrossBatchMemory``, whose state also holds how far its queue is filled.

    Wang et al. 2020, https://arxiv.org/abs/1912.06798. Without that, a resumed run would start an empty queue over
    embeddings that are there.
    """

    @override
    def get_extra_state(self) -> dict[str, Any]:
        return {"queue_idx": self.queue_idx, "has_been_filled": self.has_been_filled}

    @override
    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.queue_idx, self.has_been_filled = state["queue_idx"], state["has_been_filled"]
