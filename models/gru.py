"""A GRU on tokens, as Nguyen et al. predict the next symbol of a device's traffic ("DIoT", ICDCS 2019, section IV).

It has no running statistics. Cho et al., EMNLP 2014, with PyTorch's reset gate, which acts after the product.
"""

from torch import Tensor, nn

from models.blocks import make_dropout
from models.tokens import answered, check_answers, check_sizes, make_decoder, make_encoder


class GRU(nn.Module):
    """Next-token prediction, or a label for a whole text; dropout as in `models/lstm.py`."""

    def __init__(
        self,
        tokens: int,
        num_classes: int,
        embedding: int,
        hidden: int,
        layers: int,
        tied: bool,
        dropout: float,
        answers: str,
    ) -> None:
        super().__init__()
        check_sizes(embedding=embedding, hidden=hidden, layers=layers)
        check_answers(answers)
        self.dropout, self.answers = make_dropout(dropout), answers
        self.encoder = make_encoder(tokens, embedding)
        self.rnn = nn.GRU(embedding, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.decoder = make_decoder(hidden, num_classes, self.encoder if tied else None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] int64 tokens -> [B, num_classes, T] logits; [B, num_classes] with answers=last."""
        h, _ = self.rnn(self.dropout(self.encoder(x)))  # [B, T, hidden]
        return answered(self.decoder, self.dropout(h), self.answers)
