"""Clients trained as one model send what each would have sent alone, to float32's digits, and FLAME decides alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from flame.defenses.base import defend
from flame.engine.base import WorkerError
from flame.engine.sequential import Sequential
from flame.engine.stacked import Stacked
from flame.federation import Round
from flame.round.seeding import generator
from flame.round.types import Cohort, Notes, Updates
from flame.run.build import ConfigError, build

Compose = Callable[..., DictConfig]
RECIPE = (  # what one may have
    "client/schedule=cosine",
    "client.schedule.warmup=2",  # so that the first round has a rate of its own
    "client.clip_norm=0.5",
    "client.proximal=0.1",
    "client.label_smoothing=0.1",
    "augment=crop_flip",
    "augment.pad=1",
)
EVERYBODY = Cohort(torch.arange(5), torch.tensor([True, True, False, False, False]))
WITHIN = 1e-5  # of a row's length: the rounding of a few steps, with room for other processors; measured: 4e-7 to 2e-6


def both(
    cfg: DictConfig, at_once: int = 10, cohort: Cohort = EVERYBODY
) -> tuple[tuple[Updates, list[Notes]], tuple[Updates, list[Notes]]]:
    parts = build(cfg)
    return Sequential(parts.task).train(parts.initial, cohort), Stacked(parts.task, at_once).train(
        parts.initial, cohort
    )


def off(one: Updates, other: Updates) -> Tensor:
    """[n], how far apart rows are, of their length."""
    return (one.rows - other.rows).norm(dim=1) / one.rows.norm(dim=1)


@pytest.mark.parametrize(
    ("overrides", "within"),
    [((), WITHIN), (("model=cnn",), WITHIN), (RECIPE, WITHIN), ((*RECIPE, "client=adamw"), 50 * WITHIN)],
    ids=str,
)
def test_what_is_sent_is_what_each_would_have_sent(tiny: Compose, overrides: tuple[str, ...], within: float) -> None:
    """Weights, BatchNorm's statistics and counters, losses; after two steps, before a ReLU can tip over.

    Adam divides small gradients by their own size, and so their rounding.
    """
    (wanted, noted), (found, told) = both(tiny("client.max_steps=2", *overrides), at_once=2)
    assert float(off(wanted, found)[:4].min()) > 0  # two and two together, the last one alone
    assert float(off(wanted, found).max()) < within
    assert torch.equal(wanted.counters, found.counters)
    assert torch.allclose(wanted.losses, found.losses, rtol=within, atol=0)
    assert noted == told and int(told[0]["poisoned"]) > int(told[4]["poisoned"]) == 0


def test_in_bf16_it_is_no_further_off_than_bf16_is(tiny: Compose) -> None:
    exact, _ = both(tiny("client.max_steps=2"))
    wanted, found = both(tiny("client.max_steps=2", "precision=bf16"))
    assert float(off(wanted[0], found[0]).max()) < 2 * float(off(exact[0], wanted[0]).max()) < 0.3


def test_rounding_grows_no_faster_than_a_changed_last_bit(tiny: Compose) -> None:
    """Over a whole round. Where an activation tips over, both are as far off."""
    parts = build(tiny())
    nudged = replace(parts.initial, row=parts.initial.row * (1 + 1e-7))
    wanted, _ = Sequential(parts.task).train(parts.initial, EVERYBODY)
    found, _ = Stacked(parts.task, 10).train(parts.initial, EVERYBODY)
    beside, _ = Sequential(parts.task).train(nudged, EVERYBODY)
    assert float(off(wanted, found).median()) < WITHIN
    assert float(off(wanted, found).max()) < 3 * float(off(wanted, beside).max()) + WITHIN


def test_decisions_are_those_of_recorded_rounds(tiny: Compose, history: list[Round]) -> None:
    """Each round from the state that the recorded one started from."""
    parts = build(tiny())
    engine = Stacked(parts.task, 10)
    for record in history:
        updates, _ = engine.train(record.before, record.cohort)
        verdict = defend(parts.defense, record.before, updates, generator(0, "defense", record.number))
        assert torch.equal(verdict.accepted, record.verdict.accepted)
        assert 0 < int(verdict.accepted.sum()) < 5


@pytest.mark.parametrize("overrides", [("attack=neurotoxin",), ("attack=badnets", "attack/mixing=per_batch")], ids=str)
def test_attacks_with_a_loop_of_their_own_go_one_by_one(tiny: Compose, overrides: tuple[str, ...]) -> None:
    (wanted, _), (found, _) = both(tiny("client.max_steps=2", *overrides))
    assert torch.equal(wanted.rows[:2], found.rows[:2])
    assert 0 < float(off(wanted, found)[2:].max()) < WITHIN


def test_clients_with_other_numbers_of_images_go_one_by_one(tiny: Compose) -> None:
    cfg = tiny("partition=dirichlet", "partition.alpha=1", "attack=none")
    sizes = build(cfg).task.shards.sizes
    single = [i for i in range(10) if int((sizes == sizes[i]).sum()) == 1][:3]
    cohort = Cohort(torch.tensor(single), torch.zeros(len(single), dtype=torch.bool))
    (wanted, _), (found, _) = both(cfg, cohort=cohort)
    assert torch.equal(wanted.rows, found.rows) and len(single) == 3


def test_what_cannot_be_stacked_is_refused(tiny: Compose, tmp_path: Path) -> None:
    with pytest.raises(
        WorkerError, match=r"engine=stacked cannot train model=CNN, which must neither draw .*take engine=pool"
    ):
        Stacked(build(tiny("model=cnn", "model.dropout=0.5")).task, 10)
    with pytest.raises(ConfigError, match=r"memo.dir=.* keeps what each client makes .*engine=stacked.*leave one"):
        build(tiny("engine=stacked", f"memo.dir={tmp_path}"))
    with pytest.raises(ConfigError, match=r"engine.at_once=0 is out of range"):
        build(tiny("engine=stacked", "engine.at_once=0"))
