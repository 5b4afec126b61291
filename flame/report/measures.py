"""What a run says beyond its reported means: of its backdoor, and of whom each of the two vectors would accept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flame.report.statistics import rank_correlation
from flame.run.holdings import holdings
from flame.run.record import Array, RunRecord

VECTORS = ("weights_only", "all_state")
BLOCKS = ("trunk", "head", "running_mean", "running_var")
LEAST_SAMPLED = 3  # rounds that a client was drawn for, so that a rejection frequency says something
Mask = NDArray[np.bool_]


def mean(values: Array) -> float:
    """Of those that are defined; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def backdoor(run: RunRecord) -> dict[str, float]:
    """BA of the last attacked rounds, as many as the run reports of its end, and of all rounds after them."""
    ba, last = run.metric("eval/ba"), (run.summary or {})["mean_of_last"]
    attacked = np.flatnonzero(~np.isnan(run.metric("filter/malicious_recall")))
    after = attacked.max(initial=-1) + 1
    return {"ba_attacked": mean(ba[attacked[-last:]]), "ba_after": mean(ba[after:])}


def agreements(run: RunRecord) -> dict[str, float]:
    """Mean Jaccard indices over all rounds: of the two vectors' accepted sets, of random sets with as many benign and
    as many malicious clients each, and of each vector's with what the run itself accepted. None without both verdicts.
    """
    if not set(VECTORS) <= set(run.shadows):
        return {}
    first, second = (f"shadow_{vector}" for vector in VECTORS)
    rounds = [(rows[first] == 1, rows[second] == 1, rows["compromised"] == 1) for rows in by_round(run)]
    chance = np.array([chance_jaccard(a, b, malicious) for a, b, malicious in rounds])
    own = {f"agreement_{vector}": mean_jaccard(run, "accepted", f"shadow_{vector}") for vector in VECTORS}
    return {"agreement": mean_jaccard(run, first, second), "agreement_by_chance": mean(chance)} | own


def correlations(run: RunRecord) -> dict[str, float]:
    """Rank correlations over the benign clients that were drawn at least three times: of how often each vector rejects
    a client with its label skew and with its number of images, a confounder, and of those two. None without verdicts.
    """
    if not set(VECTORS) <= set(run.shadows):
        return {}
    rows = run.acceptance[run.acceptance["compromised"] == 0]
    clients, places = np.unique(rows["client"], return_inverse=True)
    drawn = np.bincount(places)
    often = drawn >= LEAST_SAMPLED
    held = holdings(run)
    skew, size = held.skew[clients[often]], held.sizes[clients[often]]
    found = {"skew_size": rank_correlation(skew, size)}
    for vector in VECTORS:
        rejected = np.bincount(places, weights=1 - rows[f"shadow_{vector}"])[often] / drawn[often]
        found[f"skew_{vector}"] = rank_correlation(rejected, skew)
        found[f"size_{vector}"] = rank_correlation(rejected, size)
    return found


def accepted_sets(run: RunRecord) -> str:
    """Per round a digit per client, in the order of their numbers: 1 accepted."""
    return " ".join("".join(str(bit) for bit in rows["accepted"]) for rows in by_round(run))


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


def overlaps(lines: pd.DataFrame, names: Sequence[str], key: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the mean Jaccard index of the accepted sets of two values of `key`, above the diagonal in the
    first round, in which all get the same updates, below over all rounds, of which only the cohorts are the same.
    """
    done = lines[lines["state_sha256"] != ""]
    sets = {
        (name, seed): [np.array(list(digits)) == "1" for digits in text.split()]
        for name, seed, text in zip(done[key], done["seed"], done["accepted_sets"], strict=True)
    }
    seeds = sorted({seed for _, seed in sets})

    def between(first: str, second: str, rounds: int | None) -> str:
        both = [(sets[first, s], sets[second, s]) for s in seeds if {(first, s), (second, s)} <= sets.keys()]
        of_seeds = [np.mean([jaccard(*pair) for pair in list(zip(*two, strict=False))[:rounds]]) for two in both]
        return f"{np.mean(of_seeds):.2f}" if of_seeds else "not run"

    rows = [
        [f"{i + 1} `{a}`", *("-" if i == j else between(a, b, 1 if i < j else None) for j, b in enumerate(names))]
        for i, a in enumerate(names)
    ]
    return ["", *(str(number + 1) for number in range(len(names)))], rows
