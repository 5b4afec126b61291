"""What models of tokens share: a first layer that looks tokens up, and a last one that answers.

Names and initial weights are those of PyTorch's example (pytorch/examples, word_language_model/model.py at 001d4932),
after which Bagdasaryan et al.'s Reddit model is built: `encoder`, `rnn`, `decoder`, both ends uniform in [-0.1, 0.1].

`answers` is one of
* every: a logit per class at every token, [B, classes, T], as for the next token;
* last: after the last token alone, [B, classes], as for a text with one label.
"""

from torch import Tensor, nn

SPREAD = 0.1  # of the initial weights at both ends
ANSWERS = ("every", "last")


def make_encoder(tokens: int, width: int) -> nn.Embedding:
    """[B, T] int64 in [0, tokens) -> [B, T, width]."""
    encoder = nn.Embedding(tokens, width)
    nn.init.uniform_(encoder.weight, -SPREAD, SPREAD)
    return encoder


def make_decoder(width: int, num_classes: int, tied_to: nn.Embedding | None = None) -> nn.Linear:
    """[..., width] -> [..., num_classes] logits; with the very weights of the encoder if it is tied to one.

    Tied weights: Press and Wolf, "Using the Output Embedding to Improve Language Models", EACL 2017.

    Raises:
        ValueError: the encoder's weights have another shape.
    """
    decoder = nn.Linear(width, num_classes)
    nn.init.zeros_(decoder.bias)
    if tied_to is None:
        nn.init.uniform_(decoder.weight, -SPREAD, SPREAD)
        return decoder
    if tied_to.weight.shape != decoder.weight.shape:
        tokens, embedding = tied_to.weight.shape
        raise ValueError(
            f"model.tied=true needs one shape at both ends: model.embedding={embedding} must be the width before the"
            f" output, {width}, and dataset.tokens={tokens} must be dataset.classes={num_classes}; else say"
            " model.tied=false"
        )
    decoder.weight = tied_to.weight
    return decoder


def answered(decoder: nn.Linear, h: Tensor, answers: str) -> Tensor:
    """Logits after `h` [B, T, width]: [B, classes, T], or [B, classes]; see the module's head."""
    if answers == "last":
        return decoder(h[:, -1])
    # contiguous: one product with its bias added, and classes side by side, where the loss wants them
    return decoder(h.contiguous()).transpose(1, 2)


def check_answers(answers: str) -> None:
    """ValueError for an unknown `answers`."""
    if answers not in ANSWERS:
        raise ValueError(f"model.answers={answers} is unknown: must be every (each token's next) or last (one label)")


def check_sizes(**sizes: int) -> None:
    """ValueError for a size below 1, with its key of `model`."""
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"model.{key}={value} is out of range: must be a whole number >= 1")
