"""What a step can fail of besides its figures, in one line: too little memory, nothing to compile with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dmlkd.config import TrainConfig
from dmlkd.errors import TrainingError

_CPU_MEMORY = "can't allocate memory"  # DefaultCPUAllocator's only mark
_COMPILERS = ("torch._dynamo", "torch._inductor")


@contextmanager
def clear_faults(train: TrainConfig) -> Iterator[None]:
    """Say in one line what to change where memory is not enough or a backbone cannot be compiled.

    Raises:
        TrainingError: in place of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or _CPU_MEMORY in str(error):
            raise TrainingError(_memory_advice(train)) from error
        if train.compile and type(error).__module__.startswith(_COMPILERS):
            reason = str(error).partition("\n")[0][:200]
            raise TrainingError(
                f"train.compile: the backbone cannot be compiled here: {reason}; leave train.compile out, or install "
                "what is missing (on a CPU a C++ compiler such as g++)"
            ) from error
        raise


def _memory_advice(train: TrainConfig) -> str:
    advice = []
    if train.chunk_size is None or train.chunk_size > 1:
        smaller = max(1, (train.chunk_size or train.batch_size) // 4)
        advice.append(f"train.chunk_size={smaller} (the loss stays that of the whole batch)")
    if not train.checkpoint_trunk:
        advice.append("train.checkpoint_trunk=true")
    if train.precision == "32-true":
        advice.append("train.precision=bf16-mixed")
    advice.append("a smaller train.batch_size, which is another loss")
    now = "" if train.chunk_size is None else f" in chunks of {train.chunk_size}"
    return f"memory is not enough for a batch of {train.batch_size} images{now}; set {', or '.join(advice)}"
