"""Algorithm 1's acceptance on rounds of a real federation (digits, skewed clients), against a float64 oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN

from flame.federation import Round, rounds

SCOPES = ("weights_only", "all_state")


@pytest.fixture(scope="module")
def real(compose: Callable, start: Callable) -> list[Round]:
    cfg = compose(
        *("experiment=smoke", "engine=sequential", "tracker=files", "partition=dirichlet", "partition.alpha=0.3"),
        *("partition.min_size=4", "clients=40", "clients_per_round=20", "rounds=6", "client.batch_size=8"),
    )
    with start(cfg) as (fed, state):
        return list(rounds(fed, state, 6))


def oracle(record: Round, scope: str) -> np.ndarray:
    """[n] bool, scikit-learn's HDBSCAN on cosine distances of whole float64 models."""
    updates = record.updates
    models = (updates.base.double() + updates.rows.double()).numpy()[:, updates.layout.span(scope)]
    unit = models / np.linalg.norm(models, axis=1, keepdims=True)
    size = len(models) // 2 + 1
    found = HDBSCAN(size, metric="precomputed", min_samples=1, allow_single_cluster=True, copy=True)
    return found.fit_predict(np.maximum(0, 1 - unit @ unit.T)) == 0


@pytest.mark.parametrize("scope", SCOPES)
def test_accepted_sets_are_the_oracles(real: list[Round], scope: str) -> None:
    for record in real:
        assert record.shadows[scope].accepted.tolist() == oracle(record, scope).tolist()
    assert real[0].verdict.accepted.tolist() == oracle(real[0], "weights_only").tolist()


def test_the_two_vectors_accept_different_clients(real: list[Round]) -> None:
    """On the same updates, where BatchNorm statistics differ between clients."""
    differ = [r.shadows["weights_only"].accepted.ne(r.shadows["all_state"].accepted).any() for r in real]
    assert any(differ)
