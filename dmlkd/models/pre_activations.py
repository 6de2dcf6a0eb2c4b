"""What stands before the last ReLU of a backbone's stage."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck


class StageRun(NamedTuple):
    """One pass of a stage.

    Attributes:
        pre_activation: (B, C, H, W) before the last ReLU, and before what pools after it.
        output: of the stage.
    """

    pre_activation: Tensor
    output: Tensor


def last_norm(stage: nn.Module) -> _BatchNorm | None:
    """The batch norm before the last ReLU of a stage; None for a stage that is not one of those known.

    Args:
        stage: convolution, batch norm, ReLU and pooling; or blocks of torchvision's ResNets.
    """
    if not isinstance(stage, nn.Sequential) or not len(stage):
        return None
    block = stage[-1]
    if isinstance(block, BasicBlock | Bottleneck):
        norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
    elif isinstance(stage[0], nn.Conv2d) and _relu_and_pooling(stage[2:]):
        norm = stage[1]
    else:
        return None
    return norm if isinstance(norm, _BatchNorm) else None


def _relu_and_pooling(rest: nn.Sequential) -> bool:
    return len(rest) > 0 and isinstance(rest[0], nn.ReLU) and all(isinstance(m, nn.MaxPool2d) for m in rest[1:])


def run_stage(stage: nn.Module, images: Tensor) -> StageRun:
    """Run a stage that has a :func:`last_norm`, keeping what stands before its last ReLU.

    Args:
        stage: to run; its output is that of calling it.
        images: (B, C, H, W) that it is given.
    """
    assert isinstance(stage, nn.Sequential)
    block = stage[-1]
    if isinstance(block, BasicBlock | Bottleneck):
        for earlier in stage[:-1]:
            images = earlier(images)
        before = _before_relu(block, images)
        return StageRun(before, F.relu(before))
    before = stage[1](stage[0](images))
    output = F.relu(before)
    for later in stage[3:]:
        output = later(output)
    return StageRun(before, output)


def _before_relu(block: BasicBlock | Bottleneck, images: Tensor) -> Tensor:
    inner = block.relu(block.bn1(block.conv1(images)))
    if isinstance(block, Bottleneck):
        inner = block.bn3(block.conv3(block.relu(block.bn2(block.conv2(inner)))))
    else:
        inner = block.bn2(block.conv2(inner))
    kept: Tensor = inner + (images if block.downsample is None else block.downsample(images))
    return kept
