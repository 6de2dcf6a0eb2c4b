"""Who started this process as one of several."""

import os
from typing import Literal


def launcher() -> Literal["torchrun", "srun"] | None:
    """``torchrun``, or whoever sets its variables, ``srun``, or None: this process is alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        return "torchrun"
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # in a batch script itself, which is alone, it is not set
        return "srun"
    return None
