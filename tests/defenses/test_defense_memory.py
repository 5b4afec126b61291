"""Rules that remember clients, by hand: FoolsGold's histories, Auror's features, AFA's reputations; and all resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.cluster import KMeans
from test_defenses import AFA_DEFAULT, a_round, answer, assert_close, stream

from flame.defenses.afa import cosines_to_mean
from flame.defenses.auror import Auror, minority, two_means
from flame.defenses.foolsgold import FoolsGold, foolsgold_weights
from flame.defenses.per_client import recall, remember
from flame.federation import rounds
from flame.round.checkpoint import read_checkpoint, write_checkpoint
from flame.round.types import ServerState, digest


def test_foolsgold_weights_by_hand() -> None:
    cs = torch.tensor([[1.0, 0.6, 0.3], [0.6, 1.0, 0.3], [0.3, 0.3, 1.0]], dtype=torch.float64)
    # v = 0.6, 0.6, 0.3; pardoned cs_3j = 0.15; alpha = 0.4, 0.4, 0.85, rescaled 8/17, 8/17, 1; ln(8/9) + 0.5
    assert_close(foolsgold_weights(cs, 1.0), 0.3822170, 0.3822170, 1)
    assert_close(foolsgold_weights(cs, 2.0), 0.7644339, 0.7644339, 1)


def test_foolsgold_silences_sybils_and_sums_histories() -> None:
    first = a_round([[1, 2, 0], [1, 2, 0], [0, 0, 3], [5, -1, 0], [0, 0, -1]])  # heads (2, 0) twice: sybils
    verdict = answer(FoolsGold(confidence=1.0, cut=False), first)
    assert_close(verdict.weights, 0, 0, 0.2, 0.2, 0.2)
    assert_close(verdict.state.row, 1, -0.2, 0.4)
    second = a_round([[0, 0, 3], [0, -7, 1]], ids=torch.tensor([2, 9]))
    memory = answer(FoolsGold(confidence=1.0, cut=False), second, verdict.state).state.memory
    assert memory["defense/foolsgold/ids"].tolist() == [0, 1, 2, 3, 4, 9]
    assert memory["defense/foolsgold/rows"].tolist() == [[2, 0], [2, 0], [0, 6], [-1, 0], [0, -1], [-7, 1]]


def test_foolsgold_takes_identical_clients_for_sybils() -> None:
    verdict = answer(FoolsGold(confidence=1.0, cut=False), a_round(torch.randn(3, generator=stream()).repeat(5, 1)))
    assert not bool(verdict.accepted.any())
    assert_close(verdict.state.row, 0, 0, 0)


def test_memory_per_client() -> None:
    ids = torch.tensor([7, 3])
    memory = remember({"other": torch.ones(1)}, "m", ids, torch.tensor([[7.0], [3.0]]))
    again = remember(memory, "m", torch.tensor([5, 7]), torch.tensor([[5.0], [8.0]]))
    assert recall(again, "m", torch.tensor([8, 7, 5, 3, 0]), 1).flatten().tolist() == [0, 8, 5, 3, 0]
    assert recall(memory, "m", ids, 1).flatten().tolist() == [7, 3]  # the first memory is as it was
    assert again["other"] is memory["other"]


def test_auror_rejects_who_is_suspicious_on_most_indicative_features() -> None:
    auror = Auror(threshold=1.0, find_rounds=10, vote=0.5)
    rows = [[1, 0, 0], [2, 0, 0], [3, 0, 0], [40, 10, 0], [50, 10, 10]]  # client 3 on one of two features, 4 on both
    verdict = answer(auror, a_round(rows))
    assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)
    assert_close(verdict.state.row, 11.5, 2.5, 0)
    rows[4][2] = 0  # now the second feature has nothing to tell, and the first has two votes against two clients
    assert_close(answer(auror, a_round(rows)).weights, 1 / 3, 1 / 3, 1 / 3, 0, 0)
    assert_close(answer(replace(auror, threshold=11.0), a_round(rows)).weights, *[0.2] * 5)  # nothing is indicative


def test_auror_keeps_the_features_after_the_first_rounds() -> None:
    auror = Auror(threshold=1.0, find_rounds=2, vote=0.5)
    found = answer(auror, a_round([[0, 0, 0], [0, 0, 0], [0, 9, 0]])).state
    later = a_round([[0, 0, 0], [0, 0, 0], [0, 0, 9]])
    assert answer(auror, later, replace(found, round=1)).info["auror/indicative_features"] == 1
    assert answer(auror, later, replace(found, round=1)).weights[2] == 0  # found anew: the second feature
    assert answer(auror, later, replace(found, round=2)).weights[2] > 0  # kept: the first one, on which all agree


def test_two_means_is_at_least_as_good_as_kmeans() -> None:
    values = torch.randn(9, 20, generator=stream(), dtype=torch.float64)
    gaps, upper = two_means(values)
    for column, gap, up in zip(values.T, gaps, upper.T, strict=True):
        best = KMeans(2, n_init=20, random_state=0).fit(column.reshape(-1, 1).numpy())
        parts = column[up], column[~up]
        assert sum(float(((p - p.mean()) ** 2).sum()) for p in parts) <= best.inertia_ + 1e-9
        assert float(parts[0].mean() - parts[1].mean()) == pytest.approx(float(gap))
    assert not bool(minority(torch.tensor([[True], [True], [False], [False]])).any())  # equal halves


ONE_AGAINST_FOUR = [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [-1, 0, 0]]  # cosines 1 and -1, mean 0.6, std 0.8


def test_afa_drops_below_the_median_and_remembers() -> None:
    verdict = answer(AFA_DEFAULT, a_round(ONE_AGAINST_FOUR))  # -1 < 1 - 2 * 0.8
    assert_close(verdict.weights, 0.25, 0.25, 0.25, 0.25, 0)
    assert verdict.state.memory["defense/afa/rows"].tolist() == [[1, 0]] * 4 + [[0, 1]]
    second = answer(AFA_DEFAULT, a_round([[1, 0, 0]] * 5), verdict.state)
    assert_close(second.weights, *[4 / 19] * 4, 3 / 19)  # p = 4/7 and 3/7
    assert_close(answer(replace(AFA_DEFAULT, xi=2.6), a_round(ONE_AGAINST_FOUR)).weights, *[0.2] * 5)


def test_afa_blocks_after_six_bad_rounds() -> None:
    state = ServerState(torch.zeros(3), torch.zeros(0, dtype=torch.int64))
    blocked = []
    for _ in range(7):
        blocked.append(float(answer(AFA_DEFAULT, a_round([[1, 0, 0]] * 5), state).weights[4]) == 0)
        memory = answer(AFA_DEFAULT, a_round(ONE_AGAINST_FOUR), state).state.memory
        state = replace(state, memory=memory)
    assert blocked == [False] * 6 + [True]  # I_0.5(3, 8) = 1 - 56/1024 < 0.95 < I_0.5(3, 9) = 1 - 67/2048
    assert memory["defense/afa/rows"][4].tolist() == [0, 6]  # a blocked client is not judged again


def test_afa_compares_whole_models_if_asked() -> None:
    base, rows = torch.tensor([3.0, -1.0, 2.0]), torch.randn(5, 3, generator=stream())
    inner = replace(AFA_DEFAULT, of="model").inner_products(a_round(rows, base=base))
    models = (base + rows).double()
    mean = models.mean(0, keepdim=True)
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(
        cosines_to_mean(inner, uniform), torch.cosine_similarity(models, mean), atol=1e-7, rtol=0
    )


INDICATOR = "indicator defense.images=64 defense.planting.epochs=1"


@pytest.mark.parametrize("name", ["foolsgold", "auror", "afa", "centered_clipping", "fldetector", INDICATOR])
def test_a_checkpoint_in_the_middle_changes_no_bit(name: str, tiny: Callable, start: Callable, tmp_path: Path) -> None:
    with start(tiny(*f"defense={name}".split(), "clients_per_round=8")) as (fed, state):
        whole = list(rounds(fed, state, 5))
        resumed, _ = read_checkpoint(write_checkpoint(tmp_path, whole[2].after, "identity"))
        last = list(rounds(fed, resumed, 5))[-1].after
    assert digest(last) == digest(whole[-1].after) and last.memory.keys() == whole[-1].after.memory.keys()
    assert all(torch.equal(tensor, whole[-1].after.memory[key]) for key, tensor in last.memory.items())
    assert any(key.startswith(f"defense/{name.split()[0]}") for key in last.memory)
