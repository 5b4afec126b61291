"""Recorded rounds as HDBSCAN sees them: the distances between clients and their single-linkage tree, by vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.defenses.base import guard
from flame.recording import FOLDER, read_round
from flame.report.runs import Array
from flame.shadow import shadow_verdicts

VECTORS = ("weights_only", "all_state")
MOST_CLIENTS = 200  # whose distances can be told apart on a screen


def recorded_rounds(folder: Path) -> dict[int, Any]:
    """Round -> vector -> distances and tree, of the files that `record.rounds` left in a run folder.

    A file with more than 200 clients is left out.

    Raises:
        ValueError: a file is not a recorded round.
    """
    rounds = {}
    for path in sorted((folder / FOLDER).glob("round_*.safetensors")):
        record = read_round(path)
        if 2 <= len(record.updates) <= MOST_CLIENTS:
            usable, _ = guard(record.updates)
            kept = record.updates.select(usable)
            accepted = shadow_verdicts(kept, VECTORS)
            rounds[record.state.round] = {
                scope: single_linkage(kept.geometry.cosine_distances(scope).numpy(), accepted[scope].accepted.numpy())
                | {"clients": kept.ids.tolist()}
                for scope in VECTORS
            }
    return rounds


def single_linkage(distances: Array, accepted: NDArray[np.bool_]) -> dict[str, Any]:
    """The tree of `distances` [n, n], n >= 2, in the coordinates of `scipy.cluster.hierarchy.dendrogram`.

    `order` are the clients from left to right, client k of which stands at 10 k + 5; each link is a bracket of four
    points (x, height) and `joins` says whether all below it are `accepted` [n].
    """
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distances, checks=False), "single")
    inside = list(accepted)  # of each node: all its leaves are accepted; leaves first, then links by height
    for left, right in tree[:, :2].astype(int):
        inside.append(inside[left] and inside[right])
    drawn = dendrogram(tree, no_plot=True, link_color_func=lambda node: str(int(inside[node])))
    return {
        "distances": distances,
        "order": drawn["leaves"],
        "x": drawn["icoord"],
        "height": np.array(drawn["dcoord"]),
        "joins": [int(color) for color in drawn["color_list"]],
    }
