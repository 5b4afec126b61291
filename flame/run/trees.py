"""Recorded rounds as HDBSCAN sees them: the distances between clients and their single-linkage tree, by vector."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.round.shadow import shadow_verdicts
from flame.round.types import Updates
from flame.run.record import Array
from flame.run.recording import FOLDER, read_round

log = logging.getLogger(__name__)

VECTORS = ("weights_only", "all_state")
MOST_CLIENTS = 200  # whose distances can be told apart on a screen


def recorded_rounds(folder: Path) -> dict[int, dict[str, Any]]:
    """Round -> vector -> distances and tree, of the files that `record.rounds` left in a run folder.

    Clients whose update is not finite are left out; a round of one or of more than 200 others has no vectors. A damaged
    file is named in the log.
    """
    rounds = {}
    for path in sorted((folder / FOLDER).glob("round_*.safetensors")):
        try:
            record = read_round(path)
        except ValueError as error:
            log.warning("%s", error)
            continue
        rounds[record.state.round] = vectors(record.updates)
    return rounds


def vectors(updates: Updates) -> dict[str, Any]:
    """Scope -> what there is to draw of one round."""
    usable, _ = updates.guarded
    if not 2 <= int(usable.sum()) <= MOST_CLIENTS:
        return {}
    kept = updates.select(usable)
    found = shadow_verdicts(kept, VECTORS)
    distances = {scope: kept.geometry.cosine_distances(scope).numpy() for scope in VECTORS}
    trees = {scope: single_linkage(distances[scope], found[scope].accepted.numpy()) for scope in VECTORS}
    return {scope: {"clients": kept.ids.tolist(), "distances": distances[scope]} | trees[scope] for scope in VECTORS}


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
        "order": drawn["leaves"],
        "x": drawn["icoord"],
        "height": np.array(drawn["dcoord"]),
        "joins": [int(color) for color in drawn["color_list"]],
    }
