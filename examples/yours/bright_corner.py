from dataclasses import dataclass

from torch import Generator, Tensor

from attacks.base import Attack
from flame.data.samples import Samples


@dataclass(frozen=True)
class BrightCorner(Attack):
    """A backdoor: all images of a compromised client get a white corner and one label."""

    target_class: int

    def poison(self, images: Samples, stream: Generator) -> Samples:
        return Samples(self.stamp(images.x), self.target(images.y))

    def stamp(self, x: Tensor) -> Tensor:
        x = x.clone()  # [N, C, H, W] uint8
        x[..., 0, 0] = 255
        return x

    def target(self, y: Tensor) -> Tensor:
        return y.new_full(y.shape, self.target_class)
