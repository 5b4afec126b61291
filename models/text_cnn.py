"""A causal convolutional model of tokens, with or without BatchNorm: words may be asked what images are.

Residual blocks of dilated convolutions that see no later token, after Bai, Kolter and Koltun, "An Empirical Evaluation
of Generic Convolutional and Recurrent Networks for Sequence Modeling", 2018, section 3. Deviations: one convolution a
block, no dropout, and in place of their weight normalisation one of

* batch: BatchNorm over all tokens of a batch, the only choice with running statistics. In training it so sees the mean
  and the variance of later tokens, as every token of the batch does; in evaluation nothing of them;
* group: GroupNorm of each token by itself: over a whole text, as is usual, it would tell of later tokens;
* none: no normalisation.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import GROUPS, make_norm
from models.tokens import answered, check_answers, check_sizes, make_decoder, make_encoder

LEAST = 8  # numbers in a group: of two, which are of one token alone, a norm leaves little but the signs


def token_norm(norm: str, width: int) -> nn.Module:
    """As `make_norm`, with larger groups where there are few numbers."""
    if norm == "group":
        return nn.GroupNorm(math.gcd(GROUPS, width, max(1, width // LEAST)), width)
    return make_norm(norm, width)


class Block(nn.Module):
    """x + relu(norm(conv(x))); a token sees itself and kernel - 1 earlier ones, `dilation` apart.

    A text is an image of one row, so that channels_last, which lays a token's numbers side by side, is open to it.
    """

    def __init__(self, width: int, kernel: int, dilation: int, norm: str) -> None:
        super().__init__()
        self.before = (kernel - 1) * dilation  # zeros in front, and none behind: all sees the past alone
        self.conv = nn.Conv2d(width, width, (1, kernel), dilation=(1, dilation), bias=norm == "none")
        self.norm = token_norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, 1, T] -> [B, width, 1, T]."""
        h = self.conv(F.pad(x, (self.before, 0)))
        return x + F.relu(self._token_by_token(h) if isinstance(self.norm, nn.GroupNorm) else self.norm(h))

    def _token_by_token(self, h: Tensor) -> Tensor:
        tokens = h.permute(0, 2, 3, 1)  # [B, 1, T, width]
        return self.norm(tokens.flatten(0, 2)).view(tokens.shape).permute(0, 3, 1, 2)


class TextCNN(nn.Module):
    """Next-token prediction, or a label for a whole text, from the last 1 + (kernel - 1) (2^layers - 1) tokens."""

    def __init__(
        self, tokens: int, num_classes: int, width: int, kernel: int, layers: int, norm: str, answers: str
    ) -> None:
        super().__init__()
        check_sizes(width=width, kernel=kernel, layers=layers)
        check_answers(answers)
        self.answers = answers
        self.encoder = make_encoder(tokens, width)
        self.blocks = nn.Sequential(*(Block(width, kernel, 2**i, norm) for i in range(layers)))
        self.decoder = make_decoder(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] int64 tokens -> [B, num_classes, T] logits; [B, num_classes] with answers=last."""
        h = self.encoder(x).transpose(1, 2).unsqueeze(2)  # [B, width, 1, T], channels_last as it comes
        return answered(self.decoder, self.blocks(h).squeeze(2).transpose(1, 2), self.answers)
