"""Labels smoothed less as training goes on: the dynamic label smoothing of method C2, SFR."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from dmlkd.distill.beta_smoothing import smoothed_cross_entropy
from dmlkd.distill.checks import within
from dmlkd.distill.posteriors import LabelledPosteriors
from dmlkd.signals import Need


class DynamicSmoothing(LabelledPosteriors):
    r"""Label smoothing that falls as the training accuracy rises.

    .. math:: t_i = (1 - \epsilon_e)\, \mathrm{onehot}(y_i) + \epsilon_e / C,
              \quad \epsilon_e = \epsilon\, (1 - A_{e-1})

    with :math:`A_{e-1}` the share of images whose label had the highest score when they were trained on in the epoch
    before: the passes of training, with their augmentation and the weights of each step; 0 before the first epoch. Of
    Fan and Hou 2021 (https://arxiv.org/abs/2103.07350) is that epsilon falls from 0.1 as the accuracy rises; that it
    does so in a straight line is ours.

    What was counted is in ``state_dict()``, so a resumed run goes on the same, also within an epoch; processes that are
    handed the same batch count alike.

    Args:
        epsilon: of the first epoch, from 0 to 1.

    Raises:
        ValueError: for a bad epsilon, naming it.
    """

    teacher_needs: ClassVar[frozenset[Need]] = frozenset()
    supervises: ClassVar[bool] = True

    def __init__(self, *, epsilon: float = 0.1) -> None:
        super().__init__()
        self.epsilon = within("epsilon", epsilon, 0, 1)
        self._epoch: int | None = None
        self._accuracy = 0.0
        self._right: int | Tensor = 0  # a tensor where the logits are, so that no step waits for a GPU
        self._taught = 0

    @property
    def smoothing(self) -> float:
        """Epsilon of this epoch."""
        return self.epsilon * (1 - self._accuracy)

    @override
    def start_epoch(self, epoch: int, epochs: int) -> None:
        if epoch == self._epoch:  # a run goes on within it
            return
        self._epoch = epoch
        if self._taught:
            self._accuracy = int(self._right) / self._taught
            self._right, self._taught = 0, 0

    def forward(self, *, student: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (B, C) and labels (B,); each call counts what is right."""
        with torch.no_grad():
            self._right = self._right + (student.argmax(dim=1) == labels).sum()
        self._taught += len(labels)
        shares = torch.full_like(labels, 1 - self.smoothing, dtype=torch.float32)
        return smoothed_cross_entropy(student=student, labels=labels, shares=shares)

    @override
    def get_extra_state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "accuracy": self._accuracy,
            "right": int(self._right),
            "taught": self._taught,
        }

    @override
    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._epoch, self._accuracy = state["epoch"], state["accuracy"]
        self._right, self._taught = state["right"], state["taught"]

    @override
    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}"
