"""What a run says about the two clustering vectors: who each would accept of the very same updates, round by round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flame.report.holdings import holdings
from flame.report.records import Line, common
from flame.report.statistics import rank_correlation
from flame.run.record import Array, RunRecord

VECTORS = ("weights_only", "all_state")
BLOCKS = ("trunk", "head", "running_mean", "running_var")
LEAST_SAMPLED = 3  # rounds that a client was drawn for, so that a rejection frequency says something
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class VectorLine(Line):
    """Of a run and its shadow verdicts; means over all rounds, not only the last."""

    partition: str
    norm: str  # the model's normalisation, `-` if it has no choice
    floor: float  # least share of benign clients that n//2 + 1 accepted ones leave out
    benign_recall_weights_only: float
    benign_recall_all_state: float
    malicious_recall_weights_only: float
    malicious_recall_all_state: float
    accepted_weights_only: float
    accepted_all_state: float
    agreement: float  # Jaccard index of the two accepted sets
    agreement_by_chance: float  # of random sets with as many benign and as many malicious clients each
    skew_weights_only: float  # rank correlation of a benign client's rejection frequency with its label skew
    skew_all_state: float
    size_weights_only: float  # and with its number of images, a confounder
    size_all_state: float
    skew_size: float  # of those two
    distance_share_trunk: float  # X-ray: of the summed pairwise squared distance of all_state
    distance_share_head: float
    distance_share_running_mean: float
    distance_share_running_var: float

    @classmethod
    def of(cls, run: RunRecord) -> Self:
        """The line of a run."""
        own = {field.name for field in fields(cls)} - {field.name for field in fields(Line)} - {"partition", "norm"}
        measured = means(run) | agreements(run) | correlations(run) if judged(run) else dict.fromkeys(own, np.nan)
        chosen = {"partition": run.choices["partition"], "norm": str(run.config["model"].get("norm", "-"))}
        return cls(**common(run) | chosen | measured)


@dataclass(frozen=True)
class PresetLine(Line):
    """Of a run whose own accepted sets are compared: with both vectors' on its updates, and with other runs'."""

    agreement_weights_only: float  # Jaccard index of what it accepted and what the vector would have, over all rounds
    agreement_all_state: float
    accepted_sets: str  # per round a digit per client, in the order of their numbers: 1 accepted

    @classmethod
    def of(cls, run: RunRecord) -> Self:
        """The line of a run."""
        whole = judged(run)
        agreed = {f"agreement_{v}": mean_jaccard(run, "accepted", f"shadow_{v}") if whole else np.nan for v in VECTORS}
        sets = " ".join("".join(str(bit) for bit in rows["accepted"]) for rows in by_round(run))
        return cls(**common(run) | agreed, accepted_sets=sets)


def judged(run: RunRecord) -> bool:
    """Whether a run is finished and has both vectors' verdicts; one with `shadow=[]` has none, and is of no recipe."""
    return bool(run.summary) and set(VECTORS) <= set(run.shadows)


def means(run: RunRecord) -> dict[str, float]:
    """Over all rounds in which a metric is defined."""
    names = {"floor": "filter/floor"} | {f"distance_share_{b}": f"xray/{b}/distance_share" for b in BLOCKS}
    for vector in VECTORS:
        for share in ("benign_recall", "malicious_recall", "accepted"):
            names[f"{share}_{vector}"] = f"shadow/{vector}/{share}"
    return {field: mean(run.metric(name)) for field, name in names.items()}


def agreements(run: RunRecord) -> dict[str, float]:
    """How alike the two vectors' accepted sets are, and how alike random ones would be."""
    first, second = (f"shadow_{vector}" for vector in VECTORS)
    rounds = [(rows[first] == 1, rows[second] == 1, rows["compromised"] == 1) for rows in by_round(run)]
    chance = np.array([chance_jaccard(a, b, malicious) for a, b, malicious in rounds])
    return {"agreement": mean_jaccard(run, first, second), "agreement_by_chance": mean(chance)}


def correlations(run: RunRecord) -> dict[str, float]:
    """Rank correlations over the benign clients that were drawn at least three times."""
    rows = run.acceptance[run.acceptance["compromised"] == 0]
    clients, places = np.unique(rows["client"], return_inverse=True)
    drawn = np.bincount(places)
    often = drawn >= LEAST_SAMPLED
    held = holdings(run)
    skew, size = held.skew[clients[often]], held.sizes[clients[often]]
    found = {"skew_size": rank_correlation(skew, size)}
    for vector in VECTORS:
        rejected = np.bincount(places, weights=1 - rows[f"shadow_{vector}"])[often] / drawn[often]
        found |= {
            f"skew_{vector}": rank_correlation(rejected, skew),
            f"size_{vector}": rank_correlation(rejected, size),
        }
    return found


def by_round(run: RunRecord) -> Iterator[NDArray[np.void]]:
    """The lines of acceptance.csv, a round at a time."""
    starts = np.flatnonzero(np.diff(run.acceptance["round"])) + 1
    return (rows for rows in np.split(run.acceptance, starts) if len(rows))


def mean_jaccard(run: RunRecord, first: str, second: str) -> float:
    """Over the rounds, of two columns of acceptance.csv."""
    return mean(np.array([jaccard(rows[first] == 1, rows[second] == 1) for rows in by_round(run)]))


def jaccard(a: Mask, b: Mask) -> float:
    """Members of both over members of either of two sets, given as masks [n]; 1 for two empty ones."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def chance_jaccard(a: Mask, b: Mask, malicious: Mask) -> float:
    """Expected `jaccard` of random sets with as many benign and as many malicious clients as `a` and `b` [n] have."""
    kinds = [kind for kind in (malicious, ~malicious) if kind.any()]
    return expected_jaccard(tuple((int((a & k).sum()), int((b & k).sum()), int(k.sum())) for k in kinds))


@cache
def expected_jaccard(counts: tuple[tuple[int, int, int], ...]) -> float:
    """Of two random sets, of which each kind of client gives the first two numbers out of the third.

    Each kind's overlap is hypergeometric, and they are independent: the distribution of the sum is a convolution.
    """
    from scipy.stats import hypergeom

    chance = np.ones(1)
    for ours, theirs, there in counts:
        chance = np.convolve(chance, hypergeom.pmf(np.arange(min(ours, theirs) + 1), there, ours, theirs))
    members = sum(ours + theirs for ours, theirs, _ in counts)
    overlap = np.arange(len(chance))
    return float(chance @ (overlap / (members - overlap))) if members else 1.0


def mean(values: Array) -> float:
    """Of those that are defined; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
