"""How often something happened, kept in the checkpoint."""

from torch import nn
from typing_extensions import override


class Counter(nn.Module):
    """A whole number in the ``state_dict()`` of what holds it, so that a resumed run counts on.

    Attributes:
        count: starts at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @override
    def get_extra_state(self) -> int:
        return self.count

    @override
    def set_extra_state(self, state: int) -> None:
        self.count = state
