"""A model's snapshot brings back all that training has moved."""

from __future__ import annotations

import torch
from attackers import normed_job

from attacks.snapshot import Snapshot


def test_a_snapshot_brings_everything_back() -> None:
    work = normed_job()
    before = Snapshot.of(work.model)
    work.fit(work.images)
    after = Snapshot.of(work.model)
    assert not torch.equal(before.row, after.row) and not torch.equal(before.counters, after.counters)
    before.load(work.model)
    again = Snapshot.of(work.model)
    assert torch.equal(again.row, before.row) and torch.equal(again.counters, before.counters)
