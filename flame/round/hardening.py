"""FLIP (Zhang et al., "FLIP: A Provable Defense Framework for Backdoor Mitigation in Federated Learning", ICLR 2023),
the clients' part: benign clients search for triggers of the model in training, and train on their true labels.

After the authors' code for MNIST (`trigger_fast_train` of invert_MNIST.py in KaiyuanZh/FLIP at 99a2fda3), which decides
here. Batch by batch of the client's training:

1. In the first batches, one for each class, a trigger is sought that turns one image of every other class the client
   holds into that class. It is put on half of the other classes' images of the batch.
2. Then a pair of classes is taken for two batches: in three of ten cases drawn; else the one whose trigger is largest,
   or has grown most. If the batch has both, triggers are sought for both directions at once, else for the one. They
   go on half of the images of their class, and training sees the true labels.
3. A batch is not trained on in which no class stands twice, no pair can be had, its first class is missing, or a
   trigger covers more than an eighth of the image.

The server's part is `defense=flip`. Searching costs far more than training: see conf/client/flip.yaml.

Deviations and open points: a client begins anew in every round (there, it keeps triggers and sizes from the last round
that it took part in; here clients remember nothing, so that what they send depends on seed, round and client). Of equal
sizes the last pair goes first (there, as an unstable sort leaves them; after step 1 most are equal). A search in one
direction takes all of its images at once (there, in batches of as many as the smallest search before, without what is
left over: an object used twice). If step 1 has found nothing, sizes stay 0 (there, the program exits). Whoever holds
one class alone has no trigger towards it (there, an error). A last batch of one image joins the one before. Sizes are
those of one channel; those found in two directions count threefold, as there. Triggers are sought on the batch as
training sees it, augmented or not. Attackers train without all this, as there. It is float32, whatever `precision`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardening:
    """How triggers are sought and where they go: part of a client's recipe."""

    share: float  # of a class's images in a batch that get the trigger, [0, 1]
    lr: float  # of the search, > 0
    warmup_steps: int  # of the search for each class, >= 1
    steps: int  # for a pair of classes, >= 1
    repeat_steps: int  # for both directions of a pair, in its second batch, >= 1
    cost: float  # of a mask's pixel, > 0
    repeat_cost: float  # in the second batch, > 0
    success: float  # share of images that a trigger must turn, [0, 1]
    largest: float  # share of the image that a mask may cover, (0, 1]
    drawn: float  # share of pairs that are drawn, [0, 1]

    def __post_init__(self) -> None:
        for key in ("share", "success", "drawn"):
            _require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1], a share")
        for key in ("lr", "cost", "repeat_cost"):
            _require(0 < getattr(self, key) < float("inf"), key, getattr(self, key), "in (0, inf)")
        for key in ("warmup_steps", "steps", "repeat_steps"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number >= 1")
        _require(0 < self.largest <= 1, "largest", self.largest, "in (0, 1], a share")


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"client.hardening.{key}={value} is out of range: must be {allowed}")
