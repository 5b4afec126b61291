"""A small vision transformer: LayerNorm and no BatchNorm, so that both FLAME vectors are one.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1: blocks normalise before attention and
before the dense layers. Deviations, for images of 32 pixels and less: patches of 4 pixels; the mean over patches goes
to the classifier in place of a class token (their appendix D.3: at a learning rate of its own it does as well); no
dropout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDENING = 4  # of the dense layers inside a block (their table 1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + dense(norm(x)); [B, T, width] of T patches, in and out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, WIDENING * width), nn.GELU(), nn.Linear(WIDENING * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        parts = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))  # [B, T, 3, heads, width / heads]
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.dense(self.norm2(x))


class ViTTiny(nn.Module):
    """A transformer over patches of `patch_size` x `patch_size` pixels.

    204,938 parameters with conf/model/vit_tiny.yaml for 1 channel, 28 x 28 pixels and 10 classes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        for key, value in {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads}.items():
            if value < 1:
                raise ValueError(f"model.{key}={value} is out of range: must be a whole number >= 1")
        if image_size % patch_size:
            raise ValueError(
                f"model.patch_size={patch_size} is out of range: must divide dataset.image_size={image_size}"
            )
        if width % heads:
            raise ValueError(f"model.heads={heads} is out of range: must divide model.width={width}")
        self.patches = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.position = nn.Parameter(torch.empty((image_size // patch_size) ** 2, width))  # [T, width]
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, image_size, image_size] normalised images -> [B, num_classes] logits."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position  # [B, T, width]
        return self.fc(self.norm(self.blocks(x)).mean(1))
