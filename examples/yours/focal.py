from dataclasses import dataclass, field

from torch import Tensor, nn

from flame.round.client import LocalTraining


@dataclass(frozen=True)
class Focal(LocalTraining):
    """Images that the model knows count less (Lin et al., ICCV 2017)."""

    focus: float = field(kw_only=True)  # >= 0; 0: cross entropy

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        known = model(x).float().log_softmax(1).gather(1, y[:, None])  # [B, 1], log of the right class's share
        return -((1 - known.exp()) ** self.focus * known).mean()
