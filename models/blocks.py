"""The basic block of the ResNets, what takes the place of BatchNorm, and dropout.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, figure 5 (left): two 3x3 convolutions and a
shortcut, which is a 1x1 convolution (their option B) where the shape changes. Names follow torchvision (conv1, bn1,
downsample.0) and stay the same whatever the norm.

`norm` is one of
* batch: BatchNorm, the only choice with running statistics;
* group: GroupNorm (Wu and He, ECCV 2018), the same trainable parameters and nothing that depends on the batch;
* none: no normalisation; each convolution has the bias that the norm held, and `init_without_norm` makes it trainable.

ReLU and addition work in place: no norm and no convolution needs its own output for the backward pass.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8  # at most; 2 channels per group at ResNet-8's stem (16 groups would be instance norm there)


def make_norm(norm: str, channels: int) -> nn.Module:
    """The layer that follows a convolution of `channels` outputs; ValueError for an unknown `norm`."""
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"model.norm={norm} is not known: must be batch, group or none (batch is the usual choice)")


def make_dropout(rate: float) -> nn.Dropout:
    """Features set to 0 with this chance in training, [0, 1); at 0 nothing is drawn and no bit changes."""
    if not 0 <= rate < 1:
        raise ValueError(f"model.dropout={rate} is out of range: must be in [0, 1) (0: none; zhmzm/FLAME: 0.5)")
    return nn.Dropout(rate)


def conv(inputs: int, outputs: int, kernel: int, stride: int, norm: str) -> nn.Conv2d:
    """A convolution that keeps the size (divided by the stride); with a bias only if no norm follows to shift it."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")


class BasicBlock(nn.Module):
    """relu(F(x) + shortcut(x)), F = conv, norm, relu, conv, norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride, norm)
        self.bn1 = make_norm(norm, outputs)
        self.conv2 = conv(outputs, outputs, 3, 1, norm)
        self.bn2 = make_norm(norm, outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride, norm), make_norm(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


def stage(inputs: int, outputs: int, blocks: int, stride: int, norm: str) -> nn.Sequential:
    """`blocks` basic blocks, of which the first changes width and size."""
    rest = (BasicBlock(outputs, outputs, 1, norm) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, norm), *rest)


def init_without_norm(model: nn.Module) -> None:
    """He's scale for convolutions, and 0 for the last one of every branch, so that activations do not grow with depth.

    The zero is rule 2 of Fixup (Zhang, Dauphin and Ma, ICLR 2019, section 3). Deviations: biases per channel in place
    of scalar biases and multipliers (rule 3), a classifier at PyTorch's default (rule 1: 0), and no scaling of a
    branch's first convolution by L^(-1/2) (rule 2): with the L = 3 and 8 blocks here it slowed the first epochs on
    digits and steadied nothing.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.conv2.weight)
