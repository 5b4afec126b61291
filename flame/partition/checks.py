"""What partitions ask of their settings, of labels and of the number of samples, said once.

All raise `ValueError` with the key, its value, what it must be and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

DRAWS = 1000  # a minimum size that none of so many draws reaches is taken for unreachable


def redrawn(draw: Callable[[], Tensor], min_size: int, setting: str, higher: str) -> Tensor:
    """The first counts [..., clients] int64 that `draw` gives which leave every client `min_size` samples.

    `setting` is what they were drawn with, and `higher` the remedy, in the words of the message.
    """
    best = 0
    for _ in range(DRAWS):
        counts = draw()
        smallest = int(counts.view(-1, counts.shape[-1]).sum(0).min())
        if smallest >= min_size:
            return counts
        best = max(best, smallest)
    raise ValueError(
        f"partition.min_size={min_size} was not reached in {DRAWS} draws with {setting},"
        f" clients={counts.shape[-1]} and N={int(counts.sum())} samples (the best draw left a client with {best}), a"
        f" partition that cannot fill every client: {higher}, or lower partition.min_size (>= 1) or clients"
    )


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """A ValueError that names the key unless it is ok."""
    if not ok:
        raise ValueError(f"{key}={value} is out of range: must be {allowed}")


def check_count(key: str, value: int) -> None:
    """A ValueError unless it is a whole number >= 1."""
    require(isinstance(value, int) and value >= 1, key, value, "an integer >= 1")


def check_share(q: float) -> None:
    """A ValueError unless `partition.q` is in [0, 1]."""
    require(isinstance(q, int | float) and 0 <= q <= 1, "partition.q", q, "in [0, 1] (0.5 is a common non-IID setting)")


def check_supply(labels: Tensor, clients: int, each: int = 1, key: str = "clients") -> None:
    """Disjoint shards of at least `each` samples, which `key` asks for, need clients * each samples."""
    check_count("clients", clients)
    if clients * each > len(labels):
        lower = "clients" if key == "clients" else f"{key}={each} or clients"
        overlap = ", or take partition=main_label, where clients overlap" if labels.dim() == 1 else ""
        raise ValueError(
            f"clients={clients} with at least {each} samples each need {clients * each} of N={len(labels)} samples,"
            f" a partition that cannot fill every client: lower {lower}{overlap}"
        )


def check_one_class(labels: Tensor, partition: str) -> None:
    """A ValueError unless every sample has one class, by which it could be dealt out."""
    if labels.dim() != 1:
        raise ValueError(
            f"partition={partition} deals samples out by their class, and these have a label for each of their"
            f" {labels.shape[1]} tokens: take partition=natural (who wrote what), iid, iid_imbalanced or quantity_skew"
        )
