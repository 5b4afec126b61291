"""Poisoned weights with honest statistics: each half to the bit what its own training leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attackers import PLAIN, UNSCALED, dataset, honest, job, normed_job

from attacks.constrain_and_scale import ConstrainAndScale
from attacks.forged_statistics import ForgedStatistics
from attacks.snapshot import Snapshot
from flame.round.seeding import generator


def test_weights_of_the_attack_and_statistics_of_an_honest_client() -> None:
    inner = replace(PLAIN, client=replace(job().training, epochs=3))
    sent, poisoned, clean = normed_job(), normed_job(), normed_job()
    d = Snapshot.of(clean.model).layout.trainable
    loss = ForgedStatistics(inner).train(sent)
    assert loss == inner.train(poisoned)
    got, attacked, benign = Snapshot.of(sent.model), Snapshot.of(poisoned.model), honest(clean)
    assert torch.equal(got.row[:d], attacked.row[:d]) and torch.equal(got.row[d:], benign.row[d:])
    assert torch.equal(got.counters, benign.counters)
    assert not torch.equal(got.row[:d], benign.row[:d]) and not torch.equal(got.row[d:], attacked.row[d:])
    assert not torch.equal(got.counters, attacked.counters)  # three times as many batches


def test_without_statistics_it_is_the_inner_attack() -> None:
    one, other = job(), job()
    ForgedStatistics(PLAIN).train(one)
    PLAIN.train(other)
    assert torch.equal(Snapshot.of(one.model).row, Snapshot.of(other.model).row)


def test_nothing_trains_in_its_place() -> None:
    outer = ConstrainAndScale(ForgedStatistics(PLAIN), UNSCALED, 0.5, "l2")
    with pytest.raises(ValueError, match=r"attack.backdoor=ForgedStatistics trains in its own way"):
        outer.prepare(dataset(), generator(0, "prepare"))
