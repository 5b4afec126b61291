"""Recorded rounds that a rule once got wrong, with what is right (`flame.replay` shows them)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flame.defenses.bnguard import first_statistics
from flame.defenses.kmeans import within
from flame.replay import verdict_on
from flame.round.types import Verdict
from flame.run.build import compose_defense
from flame.run.recording import RecordedRound, read_round

CASES = Path(__file__).parents[1] / "cases"


def judged(case: str, *overrides: str) -> tuple[RecordedRound, Verdict, float]:
    """The round, the verdict, and how far the trainable parameters move."""
    record = read_round(CASES / f"{case}.safetensors")
    verdict = verdict_on(record, compose_defense(list(overrides)))
    trainable = record.updates.layout.span("weights_only")
    return record, verdict, float((verdict.state.row - record.state.row)[trainable].double().norm())


def test_rfa_one_zero_update() -> None:
    """Client 9 sent the global model back; started from there, Weiszfeld's steps gave it 0.9989 of the weight."""
    record, verdict, moved = judged("rfa_one_zero_update_n10", "defense=rfa")
    rows = record.updates.rows[:, record.updates.layout.span("weights_only")].double()
    apart = rows - verdict.weights @ rows
    assert (apart / apart.norm(dim=1, keepdim=True)).sum(dim=0).norm() < 1e-5  # what makes it the geometric median
    assert moved == pytest.approx(0.12643, rel=1e-4)
    assert verdict.weights[9] == pytest.approx(0.1486, abs=1e-4) and not bool(rows[9].any())


def test_rfa_in_four_steps_is_the_authors_program() -> None:
    """Theirs ends after four steps here; the same weights, written once more with points instead of inner products."""
    record, verdict, _ = judged("rfa_one_zero_update_n10", "defense=rfa", "defense.iterations=4")
    rows = record.updates.rows[:, record.updates.layout.span("weights_only")].double()
    centre, weights = rows.mean(dim=0), torch.zeros(10, dtype=torch.float64)
    for _ in range(4):
        weights = 1 / (rows - centre).norm(dim=1)
        weights /= weights.sum()
        centre = weights @ rows
    torch.testing.assert_close(verdict.weights, weights)


def test_bnguard_finds_the_optimum_of_two_means() -> None:
    """From the points furthest apart k-means ended at 0.00449, with 7 accepted."""
    record, verdict, _ = judged("bnguard_local_optimum_n10", "defense=bnguard")
    assert verdict.accepted.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    members = torch.stack([verdict.accepted, ~verdict.accepted], dim=1).double()
    assert float(within(first_statistics(record.updates), members)) == pytest.approx(0.00358, abs=5e-6)


@pytest.mark.parametrize(("cut", "moved"), [("false", 77.47), ("true", 1.409)])
def test_foolsgold_in_both_programs_of_its_authors(cut: str, moved: float) -> None:
    """One honest update is 775 long, the others 0.2."""
    assert judged("foolsgold_long_update_n10", "defense=foolsgold", f"defense.cut={cut}")[2] == pytest.approx(
        moved, rel=1e-3
    )
