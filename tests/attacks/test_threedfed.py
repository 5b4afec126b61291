"""3DFed: what is planted is what is read, masks cancel, decoys and levels follow the answers; each by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attackers import PLAIN, model_row, normed_job, scene, threedfed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attacks.base import Crafted, Scene
from attacks.constrain_and_scale import constrained
from attacks.indicators import ACCEPTED, CLIPPED, REJECTED
from attacks.noise_masks import head_rows
from attacks.snapshot import Snapshot
from attacks.threedfed import PREFIX, _answers, _decoys, tuned
from flame.geometry.layout import StateLayout
from flame.round.seeding import generator

K, D = 1152, 1180
LAYOUT = StateLayout.from_state(  # d = 1180, the convolution has 1152 of them
    {"conv.weight": torch.zeros(16, 8, 3, 3), "fc.weight": torch.zeros(4, 6), "fc.bias": torch.zeros(4)},
    ["conv.weight", "fc.weight", "fc.bias"],
)


def colluders(m: int, seed: int = 0) -> tuple[Tensor, Scene]:
    """Backdoored updates [m, d] and a first round, benign updates twice as long as one of them."""
    stream = generator(seed, "colluders")
    notes = [
        {"benign": torch.randn(D, generator=stream) * 0.2, "curvature": torch.rand(K, generator=stream)}
        for _ in range(m)
    ]
    return torch.randn(m, D, generator=stream) / 10, scene(LAYOUT, notes, seed=seed)


def sent(m: int, group_size: int = 2) -> tuple[Crafted, Scene]:
    rows, around = colluders(m)
    return threedfed(group_size).craft(rows, around, generator(0, "craft")), around


@settings(max_examples=20)
@given(factors=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_what_the_server_did_is_read_from_its_model(factors: list[float], seed: int) -> None:
    """Ten clients; each of three updates is taken, halved or rejected, the others hardly move the places."""
    rows, around = colluders(3, seed)
    crafted = threedfed().craft(rows, around, generator(0, "craft"))
    others = torch.randn(7, D, generator=generator(seed, "others")) / 300
    total = (torch.tensor(factors)[:, None] * crafted.rows).sum(0) + others.sum(0)
    answers = _answers(crafted.memory, around.state.row + total / 10, 0.25)
    whole = max(factors)
    wanted = [REJECTED if f == 0 else ACCEPTED if f == whole else CLIPPED for f in factors]
    assert answers is not None and answers.tolist() == wanted


def test_a_noisy_server_is_not_asked_again() -> None:
    rows, around = colluders(3)
    state, asked = around.state, threedfed().craft(rows, around, generator(0, "craft"))
    for _ in range(2):
        row = state.row + torch.randn(D, generator=generator(0, "noise"))
        state = replace(state, row=row, memory=asked.memory)
        asked = threedfed().craft(rows, replace(around, state=state), generator(1, "craft"))
        assert not bool(asked.memory[PREFIX + "planted"].any()) and asked.memory[
            PREFIX + "levels"
        ].tolist() == pytest.approx([0.1, 0.1])
        assert int(asked.memory[PREFIX + "decoys"]) == 0
    assert float(asked.rows[:, :K].std(0).max()) == 0  # nothing planted, masks in the last layer only


def test_colluders_send_one_update_in_different_masks() -> None:
    """As long as a benign update, which their mean is not; the target's row and all other layers are everybody's."""
    crafted, around = sent(4)
    rows = colluders(4)[0].mean(0)
    length = torch.stack([noted["benign"].norm() for noted in around.notes]).mean()
    wanted = rows * float(length / rows.norm())
    places = crafted.memory[PREFIX + "places"]
    unplanted = crafted.rows.clone()
    unplanted[range(4), places] = wanted[places]
    torch.testing.assert_close(unplanted[:, :K], wanted[:K].expand(4, -1))
    heads = torch.stack([head_rows(row, LAYOUT) for row in unplanted]) - head_rows(wanted, LAYOUT)
    touched = heads.abs().sum(2) > 1e-6
    assert touched.sum(1).tolist() == [2] * 4 and not bool(touched[:, 2].any())
    assert torch.equal(crafted.rows[range(4), places], crafted.memory[PREFIX + "planted"])
    assert float(torch.pdist(unplanted).min()) > 0.005 and len(set(places.tolist())) == 4


@pytest.mark.parametrize(("gain", "length", "factor"), [(5.0, 1.0, None), (2.0, 1.0, 2.0), (5.0, 10.0, 1.0)])
def test_the_update_is_lengthened_at_most_gain_times_and_never_shortened(
    gain: float, length: float, factor: float | None
) -> None:
    """The benign updates are about 4 times as long as the mean, then more than `gain` times, then shorter."""
    rows, around = colluders(4)
    rows = rows * length
    mean, benign = rows.mean(0), torch.stack([noted["benign"].norm() for noted in around.notes]).mean()
    crafted = replace(threedfed(), gain=gain, neurons=0).craft(rows, around, generator(0, "craft"))
    wanted = mean * float(factor or benign / mean.norm())
    elsewhere = torch.ones(D, dtype=torch.bool).index_fill(0, crafted.memory[PREFIX + "places"], False)
    torch.testing.assert_close(crafted.rows[:, elsewhere], wanted[elsewhere].expand(4, -1))
    torch.testing.assert_close(crafted.memory[PREFIX + "planted"], 0.2 * wanted.norm().expand(4))


def test_without_masks_all_send_the_same_but_for_indicators() -> None:
    """Those are planted where they were, as large as they were: nothing else has changed."""
    (rows, around), (masked, _) = colluders(4), sent(4)
    plain = replace(threedfed(), neurons=0).craft(rows, around, generator(0, "craft"))
    places = plain.memory[PREFIX + "places"]
    assert torch.equal(places, masked.memory[PREFIX + "places"])
    assert torch.equal(plain.memory[PREFIX + "planted"], masked.memory[PREFIX + "planted"])
    elsewhere = torch.ones(D, dtype=torch.bool).index_fill(0, places, False)
    assert float(plain.rows[:, elsewhere].std(0).max()) == 0 < float(masked.rows[:, elsewhere].std(0).max())


@pytest.mark.parametrize(
    ("k", "answers", "wanted"),
    [
        (0, [REJECTED, REJECTED, REJECTED], 1),
        (0, [REJECTED, CLIPPED, REJECTED], 0),
        (1, [REJECTED, REJECTED, REJECTED], 2),
        (1, [REJECTED, REJECTED, ACCEPTED], 0),
        (2, [ACCEPTED, REJECTED, REJECTED], 2),
    ],
)
def test_the_number_of_decoys_follows_the_answers(k: int, answers: list[int], wanted: int) -> None:
    assert _decoys({PREFIX + "decoys": torch.tensor(k)}, torch.tensor(answers)) == wanted


@pytest.mark.parametrize(
    ("won", "wanted"),
    [
        ([True, True, True], [0.3, 0.5, 0.4]),  # between the two smallest
        ([True, False, True], [0.5, 0.6, 0.55]),  # from the smallest that won, up by 0.1
        ([False, False, False], [0.01, 0.99, 0.5]),  # anywhere, kept off the ends
    ],
)
def test_levels_by_hand(won: list[bool], wanted: list[float]) -> None:
    got = tuned(torch.tensor([0.5, 0.3, 0.6]), torch.tensor(won), torch.tensor([0.0, 1.0, 0.5]), 0.0)
    assert got.tolist() == pytest.approx(wanted)


def test_a_single_group_keeps_what_won() -> None:
    assert tuned(torch.tensor([0.4]), torch.tensor([True]), torch.rand(1), 0.0).tolist() == pytest.approx([0.4])


def remembered(row: Tensor, taken: list[float], levels: list[float], decoys: int = 0) -> dict[str, Tensor]:
    """The memory before a global model [d + b] that took such shares of the colluders' updates, one of ten each."""
    m = len(taken)
    told = {"places": [*range(m)], "planted": [1.0] * m, "levels": levels, "decoys": decoys, "clients": 10}
    return {PREFIX + k: torch.tensor(v) for k, v in told.items()} | {
        PREFIX + "before": row[:m] - torch.tensor(taken) / 10
    }


def rejected(row: Tensor) -> dict[str, Tensor]:
    """The memory of a round in which nothing of two colluders' updates arrived."""
    return remembered(row, [0, 0], [0.5])


@pytest.mark.parametrize(
    ("taken", "decoys", "low", "high"),
    [
        ([1, 1, 0, 0], 0, 0.3, 0.4),  # the first pair won: from its level, up by 0.1
        ([0, 0, 1, 1], 0, 0.5, 0.6),
        ([1, 1, 0.5, 0.5], 0, 0.3, 0.4),  # clipped is not accepted
        ([1, 1, 1, 0], 0, 0.3, 0.4),  # nor is half of a pair
        ([1, 1, 1, 1], 0, 0.3, 0.5),
        ([0, 0, 0, 1], 1, 0.0, 1.0),  # a decoy alone
        ([1, 1, 0, 1], 1, 0.3, 0.4),
    ],
)
def test_levels_follow_what_the_server_took(taken: list[float], decoys: int, low: float, high: float) -> None:
    """Of two pairs of colluders at 0.3 and 0.5, the last of them with a decoy."""
    rows, around = colluders(4)
    state = replace(around.state, memory=remembered(around.state.row, taken, [0.3, 0.5], decoys))
    told = [noted | {"decoy": torch.zeros(D)} for noted in around.notes]
    memory = threedfed().craft(rows, replace(around, state=state, notes=told), generator(0, "craft")).memory
    drawn = low + (high - low) * torch.rand(2, generator=generator(0, "craft"))
    torch.testing.assert_close(memory[PREFIX + "levels"], drawn)


def test_a_decoy_is_benign_but_for_one_weight_far_off() -> None:
    work, plain = normed_job(), normed_job()
    start = Snapshot.of(work.model)
    work = replace(work, memory=rejected(start.row))
    threedfed().train(work)
    decoy, benign = work.notes["decoy"], work.notes["benign"]
    weights = next(e for e in start.layout.entries if e.block == "head" and len(e.shape) > 1)
    part = slice(weights.start, weights.stop)
    off = (decoy - benign)[part].abs()
    place = int((Snapshot.of(work.model).row - start.row - benign)[part].abs().argmin())
    assert int(off.argmax()) == place and float(off.sort().values[-2]) < 0.05
    assert float(off[place]) == pytest.approx(5 * 0.1 * 10 / 2, abs=0.05)  # five steps of 0.1 down a slope of 10 / 2
    threedfed().train(plain)  # nothing was rejected before
    assert "decoy" not in plain.notes
    assert torch.equal(Snapshot.of(plain.model).row, Snapshot.of(work.model).row)


@pytest.mark.parametrize(("m", "k"), [(2, 0), (3, 1)])
def test_decoys_are_sent_by_the_last_colluders_and_leave_two_in_masks(m: int, k: int) -> None:
    """All was rejected, one decoy is wanted: two colluders go on in masks, of three the last sends it."""
    rows, around = colluders(m)
    decoy = torch.full((D,), 7.0)
    memory = rejected(around.state.row)
    told = replace(
        around, state=replace(around.state, memory=memory), notes=[n | {"decoy": decoy} for n in around.notes]
    )
    crafted = threedfed().craft(rows, told, generator(0, "craft"))
    assert (crafted.rows == decoy).sum(1).tolist() == [0, 0] + [D - 1] * k
    assert int(crafted.memory[PREFIX + "decoys"]) == k
    assert not torch.equal(crafted.rows[0, K:], crafted.rows[1, K:])  # masks are in the last layer


def test_the_constrained_training_starts_at_the_global_model() -> None:
    """Bit by bit what the poisoned images alone come to, whatever else was trained on the client before."""
    work, poisoned = normed_job(), PLAIN.compromise(normed_job())
    loss = threedfed().train(work)
    assert loss == poisoned.fit(poisoned.images, objective=constrained(poisoned, 0.6, "l2"))
    assert torch.equal(model_row(work), model_row(poisoned))
