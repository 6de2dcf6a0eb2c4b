"""The label mixed with an earlier self's posterior, more of it in later epochs: the target of method B2, PS-KD."""

from dmlkd.distill.posteriors import LabelMixing
from dmlkd.distill.schedules import LinearRamp


def ps_kd(*, share: float = 0.8) -> LabelMixing:
    """Progressive self-knowledge distillation's target (Kim et al. 2021, https://arxiv.org/abs/2006.12000).

    Args:
        share: a, from 0 to 1, of the teacher in the last epoch's target; epoch e of E has a (e + 1) / E.

    Raises:
        ValueError: for a bad share, naming it.
    """
    return LabelMixing(share=share, growth=LinearRamp(ends_full=True))
