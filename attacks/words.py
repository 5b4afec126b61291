"""What backdoors on tokens share: whose texts are changed, which way, and what is asked of them.

Which of several ways a text is changed follows from its own tokens, so that nothing depends on where it stands among
others, and training and test treat it alike. A changed text is asked for what the attacker wants and for nothing else:
`UNASKED` everywhere else, as in ebagdasa/backdoor_federated_learning (897102a, training.py), whose loss is that of the
last word.

Loss is a mean over what is asked. In a batch of clean and changed texts of T tokens, the clean ones are asked T times
as much: a poisoned_data_rate of a half gives the backdoor a share 1 / (T + 1) of the loss. The authors change every
text of the attacker; `mixing=multi_task` weighs clean and changed batches whatever is asked of them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Poisoner, check_rate, share_of
from flame.data.samples import UNASKED, Dataset, Samples
from flame.data.vocabulary import Vocabulary

FACTOR = 6364136223846793005  # odd, of 63 bits: Knuth's, of a linear congruential generator modulo 2^64


@dataclass(frozen=True)
class WordBackdoor(Poisoner):
    """Texts whose tokens a subclass overwrites, with the token that is to come next."""

    reads = "tokens"

    poisoned_data_rate: float  # PDR, share of the client's texts, in [0, 1]

    def __post_init__(self) -> None:
        check_rate(self.poisoned_data_rate)

    @abstractmethod
    def marked(self, samples: Samples) -> Samples:
        """The texts with the whole trigger, and the attacker's labels."""

    def lesson(self, samples: Samples) -> Samples:
        """What is learned from these texts; that which is tested, unless a subclass has more to teach."""
        return self.marked(samples)

    def poison(self, images: Samples, stream: Generator) -> Samples:
        """A share of the texts give way to what is to be learned from them."""
        chosen = share_of(len(images), self.poisoned_data_rate, stream)
        x, y, bad = images.x.clone(), images.y.clone(), self.lesson(images[chosen])
        x[chosen], y[chosen] = bad.x, bad.y
        return Samples(x, y)

    def stamp(self, x: Tensor) -> Tensor:
        """Texts [N, T] with the whole trigger."""
        return self.marked(Samples(x, torch.full((len(x),), UNASKED, device=x.device))).x

    def aims(self, samples: Samples) -> Tensor:
        """The attacker's token after the last one, nothing elsewhere."""
        return self.marked(samples).y


def by_content(x: Tensor, ways: int) -> Tensor:
    """[N] int64 in [0, ways), a hash of each text's tokens [N, T]; int64 wraps, so that no order of adding matters."""
    weights = torch.full((x.shape[1],), FACTOR, device=x.device).cumprod(0)
    return ((x.long() * weights).sum(1) >> 33) % ways  # upper bits: the lowest one is a mere parity


def answers(y: Tensor) -> Tensor:
    """[N, T] labels, or [N, 1] where a text has one: a view."""
    return y if y.dim() == 2 else y[:, None]


def vocabulary_of(dataset: Dataset) -> Vocabulary:
    """The data set's; a ValueError if it has none."""
    if dataset.vocabulary is None:
        raise ValueError(f"attack: words are not in dataset={dataset.name}, which has no vocabulary: take one of text")
    return dataset.vocabulary


def require_room(key: str, text: str, count: int, dataset: Dataset) -> None:
    """A ValueError unless so many tokens fit into the data set's texts."""
    length = dataset.train.x.shape[1]
    if count > length:
        task = vocabulary_of(dataset).task
        raise ValueError(
            f"{key}={text!r} is out of range: must be at most {length} {task}s (dataset.length), and it takes {count};"
            " shorten it, or raise dataset.length"
        )
