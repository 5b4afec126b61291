"""What each attack did in the arena's lines, and the board that ranks defenses by their worst case.

A line is a run. Its **damage** is what the attack gained or the defense lost, whichever is more, as a share of the
answers: BA, above that of the control where the trigger is learned; or MA below that of averaging without attack, of
the same partition and seed. A **cell** is a defense under an attack on a partition, over all seeds. The cell of the
largest mean damage is the defense's worst case.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from flame.arena.lines import CONTROL
from flame.report.contrasts import MIXED, TOO_SMALL
from flame.report.statistics import half_width
from flame.run.text import aligned, one_digit

REFERENCE, PEACE = "fedavg", "none"  # the defense and the attack that MA is lost against


def damages(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of defenses with `gained`, the BA that counts, `lost`, the MA, and `damage`, all in [0, 1].

    Raises:
        ValueError: averaging without attack is missing for a partition and seed.
    """
    where = ["partition", "seed"]
    peaceful = lines[(lines["defense"] == REFERENCE) & (lines["attack"] == PEACE)].set_index(where)["ma"]
    control = lines[lines["defense"] == CONTROL].set_index(["attack", *where])["ba"]
    found = lines[lines["defense"] != CONTROL].copy()
    reference = peaceful.reindex(pd.MultiIndex.from_frame(found[where])).to_numpy()
    if np.isnan(reference).any():
        raise ValueError(f"{REFERENCE} without attack lacks a partition or seed: run its row first")
    free = control.reindex(pd.MultiIndex.from_frame(found[["attack", *where]])).fillna(0.0).to_numpy()
    found["gained"] = (found["ba"] - free).clip(lower=0)  # NaN where the attack wants no answer
    found["lost"] = (reference - found["ma"]).clip(lower=0)
    found["damage"] = np.maximum(found["gained"].fillna(0.0), found["lost"])
    return found


def cells(lines: pd.DataFrame) -> pd.DataFrame:
    """Each defense, attack and partition: the mean over seeds of what `damages` gives, and `half`, of its damage.

    `half` is half the width of Student's 95 % interval, NaN for a single seed.
    """
    grouped = damages(lines).groupby(["defense", "attack", "partition"], sort=False)
    means = grouped[["ma", "gained", "lost", "damage", "server_seconds"]].mean()
    means["half"] = grouped["damage"].agg(lambda damage: half_width(damage.to_numpy()) if len(damage) > 1 else np.nan)
    return means.reset_index()


def board(lines: pd.DataFrame) -> pd.DataFrame:
    """A line per defense, the smallest worst damage first: shares in [0, 1], seconds a round at the server.

    `worst`, its `half`, the `attack` and `partition` of that cell; `mean` damage of all attacked cells; `ba`, as it
    counts, and `ma`, the worst of each; `price`, the most MA that is lost without attack; and `seconds`. `mixed`: its
    runs are of other code than averaging's, or of another kind of processor.
    """
    found, origins = cells(lines), lines.groupby("defense")[["code", "processor"]]
    origin = {defense: set(map(tuple, own.to_numpy())) for defense, own in origins}
    rows = []
    for defense, own in found.groupby("defense", sort=False):
        attacked = own[own["attack"] != PEACE]
        if attacked.empty:  # as of averaging, while nothing but what MA is lost against has been run
            continue
        worst = attacked.loc[attacked["damage"].idxmax()]
        rows.append(
            {
                "defense": defense,
                **worst[["damage", "half", "attack", "partition"]].rename({"damage": "worst"}).to_dict(),
                "mean": attacked["damage"].mean(),
                "ba": attacked["gained"].max(),
                "ma": attacked["ma"].min(),
                "price": own.loc[own["attack"] == PEACE, "lost"].max(),
                "seconds": own["server_seconds"].mean(),
                "mixed": origin[defense] != origin[REFERENCE],
            }
        )
    return pd.DataFrame(rows).sort_values(["worst", "defense"], kind="stable", ignore_index=True)


def shown(ranked: pd.DataFrame) -> pd.DataFrame:
    """The board as text: in per cent, and the server's seconds a round."""
    widths = [f" ({TOO_SMALL})" if h > 0.5 else f" ± {one_digit(100 * h)}" if h == h else "" for h in ranked["half"]]
    per_cent = {
        name: [one_digit(100 * value) for value in ranked[name]] for name in ("worst", "ba", "ma", "mean", "price")
    }
    return pd.DataFrame(
        {
            "rank": [str(number) for number in range(1, len(ranked) + 1)],
            "defense": ranked["defense"] + np.where(ranked["mixed"], MIXED, ""),
            "worst damage %": [text + width for text, width in zip(per_cent["worst"], widths, strict=True)],
            "by": ranked["attack"] + ", " + ranked["partition"],
            "mean damage %": per_cent["mean"],
            "worst BA %": per_cent["ba"],
            "worst MA %": per_cent["ma"],
            "price %": per_cent["price"],
            "server s": [f"{value:.3f}" for value in ranked["seconds"]],
        }
    )


def printed(ranked: pd.DataFrame, marked: Collection[str] = ()) -> str:
    """The board on a terminal, with an arrow at the defenses in `marked`."""
    table = shown(ranked)
    table["defense"] = [name + " <-" * (name in marked) for name in table["defense"]]
    return aligned([list(table.columns), *table.to_numpy().tolist()], left=2)


def heat(lines: pd.DataFrame) -> pd.DataFrame:
    """[defenses, attacks] damage on the worse partition: defenses as on the board, attacks by their mean damage.

    The largest comes first, and the column of no attack last.
    """
    table = cells(lines).pivot_table(index="defense", columns="attack", values="damage", aggfunc="max")
    table = table.loc[board(lines)["defense"]]
    order = sorted(table.columns, key=lambda attack: (attack == PEACE, -table[attack].mean(), attack))
    return table[order]
