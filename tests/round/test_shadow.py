"""Shadow verdicts are what FLAME with that vector accepts; the X-ray's shares are those of a direct computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from flame.federation import Round
from flame.round.seeding import generator
from flame.round.shadow import shadow_verdicts, xray
from flame.round.types import ServerState, Updates
from flame.run.build import make

Recorded = Callable[..., tuple[ServerState, Updates]]


@pytest.mark.parametrize("scope", ["weights_only", "all_state"])
@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_a_shadow_is_the_defenses_own_verdict(compose: Callable, updates: Recorded, scope: str, n: int) -> None:
    defense = make(compose(f"defense=flame_{scope}"), "defense")
    for seed in range(5):
        state, sent = updates(seed, n)
        shadow = shadow_verdicts(sent, [scope])[scope]
        verdict = defense(state, sent, generator(seed, "defense"))
        assert torch.equal(shadow.accepted, verdict.accepted)
        assert shadow.outlier_scores.shape == (n,)


def test_the_defenses_round_records_its_own_set(history: list[Round]) -> None:
    for record in history:
        assert torch.equal(record.shadows["weights_only"].accepted, record.verdict.accepted)
        assert set(record.shadows) == {"weights_only", "all_state"}


def test_unusable_updates_are_outside(updates: Recorded) -> None:
    _, sent = updates(seed=1, n=7)
    keep = torch.arange(7) != 3
    alone = shadow_verdicts(sent.select(keep), ["all_state"])["all_state"]
    rows = sent.rows.clone()
    rows[3, 0] = float("nan")
    found = shadow_verdicts(replace(sent, rows=rows), ["all_state"])["all_state"]
    assert not found.accepted[3] and found.outlier_scores[3] == 1
    assert torch.equal(found.accepted[keep], alone.accepted)
    torch.testing.assert_close(found.outlier_scores[keep], alone.outlier_scores)


def test_nobody_is_usable(updates: Recorded) -> None:
    _, sent = updates(seed=1, n=4)
    broken = replace(sent, rows=torch.full_like(sent.rows, float("inf")))
    assert not shadow_verdicts(broken, ["weights_only"])["weights_only"].accepted.any()
    assert xray(broken) == {}


def test_observers_leave_the_round_alone(updates: Recorded) -> None:
    _, sent = updates(seed=2, n=6)
    rows, base = sent.rows.clone(), sent.base.clone()
    shadow_verdicts(sent, ["weights_only", "all_state", "full_state", "head"])
    xray(sent)
    assert torch.equal(sent.rows, rows) and torch.equal(sent.base, base)


def test_xray_against_a_direct_computation(updates: Recorded) -> None:
    _, sent = updates(seed=3, n=8)
    rows = sent.rows.double()
    norm = {b: float((rows[:, s] ** 2).sum()) for b, s in sent.layout.spans.items()}
    spread = {b: float((torch.cdist(rows[:, s], rows[:, s]) ** 2).sum()) for b, s in sent.layout.spans.items()}
    found = xray(sent)
    assert len(found) == 2 * len(norm) == 8
    for block in norm:
        assert found[f"xray/{block}/norm_share"] == pytest.approx(norm[block] / sum(norm.values()), rel=1e-9)
        assert found[f"xray/{block}/distance_share"] == pytest.approx(spread[block] / sum(spread.values()), rel=1e-9)
    for name in ("norm_share", "distance_share"):
        assert sum(v for k, v in found.items() if k.endswith(name)) == pytest.approx(1)


def test_without_statistics_only_weights_are_on_the_xray(updates: Recorded) -> None:
    _, sent = updates(seed=3, n=4, with_bn=False)
    assert {k.split("/")[1] for k in xray(sent)} == {"trunk", "head"}
