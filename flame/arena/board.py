"""What each attack did in the arena's lines, the board that ranks defenses by their worst case, and both vectors.

A line is a run. In it the attack **gained** BA, above that of the control where the trigger is learned, and the defense
**lost** MA, below that of averaging without attack; both are against lines of the same partition and seed, and may be
below 0. A **cell** is a defense under an attack on a partition, over all seeds. Its **damage** is the larger of both
means, at least 0. The cell of the largest damage is the defense's worst case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from flame.arena.contest import recipe
from flame.arena.lines import CONTROL, REFERENCE
from flame.report.contrasts import MIXED, TOO_SMALL
from flame.report.statistics import half_width
from flame.run.text import aligned, one_digit

PEACE = "none"  # the attack without which MA is lost
WHERE = ["partition", "seed"]
VECTORS = ["flame_weights_only", "flame_all_state"]
ORIGIN = ["code", "processor"]


def compared(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of defenses with `gained` and `lost`, in [-1, 1], and `mixed`.

    `gained` is NaN where the attack wants no answer. `mixed`: a line that it is compared with is of other code or of
    another kind of processor; of averaging, its own lines are.

    Raises:
        ValueError: a line that others are compared with is missing.
    """
    found = lines[lines["defense"] != CONTROL].copy()
    peace = partners(found, lines[(lines["defense"] == REFERENCE) & (lines["attack"] == PEACE)], WHERE)
    control = partners(found, lines[lines["defense"] == CONTROL], ["attack", *WHERE])
    learned = found["attack"].isin(recipe(CONTROL).plan["attack"])
    if found.empty or peace["ma"].isna().any():
        raise ValueError(f"{REFERENCE} without attack lacks a partition or seed: run its row first")
    if control.loc[learned, "ba"].isna().any():
        raise ValueError("the control lacks an attack, partition or seed: run that recipe of conf/recipe/arena/ first")
    found["gained"] = found["ba"] - control["ba"].where(learned, 0.0)
    found["lost"] = peace["ma"] - found["ma"]
    other, of_control = ((found[ORIGIN] != line[ORIGIN]).any(axis=1) for line in (peace, control))
    averaging = found["defense"] == REFERENCE
    several = len(found.loc[averaging, ORIGIN].drop_duplicates()) > 1
    found["mixed"] = other | (learned & of_control) | (averaging & several)
    return found


def partners(lines: pd.DataFrame, others: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Of each line that one of `others` which has the same `on`; NaN where there is none."""
    return lines[[*on]].merge(others, how="left", on=[*on]).set_axis(lines.index)


def cells(lines: pd.DataFrame) -> pd.DataFrame:
    """Each defense, attack and partition: means over the seeds, `damage`, its `half`, and whether a line is `mixed`.

    `half` is half the width of Student's 95 % interval, NaN for a single seed; `admitted` the share of the malicious
    clients that were let in, of all rounds, NaN where there are none.
    """
    place = ["defense", "attack", "partition"]
    grouped = compared(lines).groupby(place, sort=False)
    return pd.DataFrame([dict(zip(place, name, strict=True)) | cell(own) for name, own in grouped])


def cell(own: pd.DataFrame) -> dict[str, Any]:
    """What `cells` says of one, from its lines."""
    means = own[["ma", "gained", "lost", "server_seconds"]].mean()
    larger = "gained" if means["gained"] > means["lost"] else "lost"  # of NaN and a number the number
    half = half_width(own[larger].to_numpy()) if len(own) > 1 else np.nan
    admitted = 1 - own["malicious_recall"].mean()
    return {**means, "damage": max(means[larger], 0.0), "half": half, "admitted": admitted, "mixed": own["mixed"].any()}


def board(lines: pd.DataFrame) -> pd.DataFrame:
    """A line per defense, the smallest worst damage first, then the smallest mean: shares in [0, 1], seconds a round.

    `worst`, its `half`, the `attack` and `partition` of that cell; `mean` damage of all attacked cells; `gained` BA and
    `ma`, the worst of each; `price`, the damage without attack; `seconds`; and `mixed`, if a cell is.
    """
    found = cells(lines)
    attacked, peace = found[found["attack"] != PEACE], found[found["attack"] == PEACE]
    whole, under = found.groupby("defense"), attacked.groupby("defense")
    worst = attacked.loc[under["damage"].idxmax(), ["defense", "damage", "half", "attack", "partition"]]
    ranked = worst.rename(columns={"damage": "worst"}).set_index("defense")
    ranked = ranked.assign(mean=under["damage"].mean(), gained=under["gained"].max(), ma=under["ma"].min())
    ranked["price"] = peace.groupby("defense")["damage"].max()
    ranked["seconds"], ranked["mixed"] = whole["server_seconds"].mean(), whole["mixed"].any()
    return ranked.reset_index().sort_values(["worst", "mean", "defense"], kind="stable", ignore_index=True)


def shown(ranked: pd.DataFrame) -> pd.DataFrame:
    """The board as text: in per cent, and the server's seconds a round."""
    per_cent = {
        name: [one_digit(100 * value) for value in ranked[name]] for name in ("worst", "gained", "ma", "mean", "price")
    }
    return pd.DataFrame(
        {
            "rank": [str(number) for number in range(1, len(ranked) + 1)],
            "defense": ranked["defense"] + np.where(ranked["mixed"], MIXED, ""),
            "worst damage %": estimates(ranked["worst"], ranked["half"]),
            "by": ranked["attack"] + ", " + ranked["partition"],
            "mean damage %": per_cent["mean"],
            "worst BA gained %": per_cent["gained"],
            "worst MA %": per_cent["ma"],
            "price %": per_cent["price"],
            "server s": [f"{value:.3f}" for value in ranked["seconds"]],
        }
    )


def estimates(shares: Iterable[float], halves: Iterable[float]) -> list[str]:
    """Per cent ± half an interval's width, or words where that is wider than the whole scale."""
    widths = [f" ({TOO_SMALL})" if h > 0.5 else f" ± {one_digit(100 * h)}" if h == h else "" for h in halves]
    return [one_digit(100 * share) + width for share, width in zip(shares, widths, strict=True)]


def vectors(lines: pd.DataFrame) -> pd.DataFrame:
    """What each attack did to averaging and to FLAME with either vector, as text; what did most to a vector first.

    Damage, and what each vector admitted of the malicious clients, in per cent; a line per attack and partition.
    """
    found = cells(lines).set_index(["attack", "partition"])
    attacked = found.drop(index=PEACE, level="attack")
    of = {name: attacked[attacked["defense"] == name] for name in (REFERENCE, *VECTORS)}
    most = pd.concat([of[name]["damage"] for name in VECTORS]).groupby(level=[0, 1], sort=False).max()
    order = most.sort_values(ascending=False, kind="stable").index
    table = order.to_frame(index=False)
    for name, own in of.items():
        own = own.reindex(order)
        table[f"`{name}`: damage %"] = estimates(own["damage"], own["half"])
        if name != REFERENCE:
            table[f"`{name}`: admitted %"] = [one_digit(100 * share) for share in own["admitted"]]
    return table


def tuned(lines: pd.DataFrame) -> pd.DataFrame:
    """What other settings of a defense do, as text: a line per defense, that of the smallest worst damage first.

    All its settings with the worst damage of each, the best first; then more of the best.
    """
    ranked = board(lines)
    ranked = ranked[ranked["defense"] != REFERENCE]
    names = ranked["defense"].str.partition(" ")
    best = ranked.groupby(names[0], sort=False).head(1)
    each = names[2].replace("", "default") + ": " + [one_digit(100 * share) for share in ranked["worst"]]
    return pd.DataFrame(
        {
            "defense": best["defense"].str.partition(" ")[0] + np.where(best["mixed"], MIXED, ""),
            "settings: worst damage %": [*each.groupby(names[0], sort=False).agg("; ".join)],
            "the best: by": best["attack"],
            "mean damage %": [one_digit(100 * share) for share in best["mean"]],
            "price %": [one_digit(100 * share) for share in best["price"]],
        }
    )


def printed(ranked: pd.DataFrame, marked: Collection[str] = ()) -> str:
    """The board on a terminal, with an arrow at the defenses in `marked`."""
    table = shown(ranked)
    table["defense"] += [" <-" * (name in marked) for name in ranked["defense"]]
    return aligned([list(table.columns), *table.to_numpy().tolist()], left=2)


def heat(lines: pd.DataFrame) -> pd.DataFrame:
    """[defenses, attacks] damage on the worse partition: defenses as on the board, attacks by their mean damage.

    The largest comes first, and the column of no attack last.
    """
    table = cells(lines).pivot_table(index="defense", columns="attack", values="damage", aggfunc="max")
    table = table.loc[board(lines)["defense"]]
    order = sorted(table.columns, key=lambda attack: (attack == PEACE, -table[attack].mean(), attack))
    return table[order]
