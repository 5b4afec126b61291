"""The LSTM of the published language tasks: an embedding, LSTM layers, an output per token.

McMahan et al. (AISTATS 2017, section 3) and LEAF (Caldas et al., 2018; models/shakespeare/stacked_lstm.py at 21f185e6)
predict characters with it; Bagdasaryan et al. (AISTATS 2020) and the FLAME paper words. It has no running statistics.

Deviations: PyTorch's LSTM has two biases per gate where TensorFlow's has one, and its forget gate does not start at 1.
Each sample starts from a state of zeros; Bagdasaryan et al. carry it from one window of an author to the next.
"""

from torch import Tensor, nn

from models.blocks import make_dropout
from models.tokens import answered, check_answers, check_sizes, make_decoder, make_encoder


class LSTM(nn.Module):
    """Next-token prediction, or a label for a whole text.

    Dropout is where PyTorch's example has it: after the embedding, between layers, before the output.
    """

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
        self.rnn = nn.LSTM(embedding, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.decoder = make_decoder(hidden, num_classes, self.encoder if tied else None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] int64 tokens -> [B, num_classes, T] logits; [B, num_classes] with answers=last."""
        h, _ = self.rnn(self.dropout(self.encoder(x)))  # [B, T, hidden]
        return answered(self.decoder, self.dropout(h), self.answers)
