"""What is shown of a partition: the histogram of labels, their skew, the table and the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from flame.data.samples import UNASKED, Shards
from flame.partition import figure
from flame.partition.figure import Held, describe, label_histogram, label_skew, label_skews, plot_held
from flame.partition.rules import dirichlet, iid, label_groups, main_label, shards
from flame.partition.sizes import iid_imbalanced, quantity_skew


def held(histogram: Tensor) -> Held:
    return Held(histogram.sum(1), label_skew(histogram), histogram)


def test_histogram_and_skew_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    parts = Shards.cut(torch.tensor([0, 1, 2, 3, 4, 5, 5]), torch.tensor([3, 1, 3]))
    histogram = label_histogram(labels, parts, 4)
    assert histogram.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0]]
    # the mix of all is (2, 2, 3) / 7; client 0 has (2, 1, 0) / 3: |8/21| + |1/21| + |9/21|, halved
    assert label_skew(histogram).tolist() == pytest.approx([9 / 21, 5 / 7, 4 / 7])
    assert label_skew(torch.tensor([[5, 5], [1, 1]])).tolist() == [0, 0]


def test_the_table_is_aligned_and_ends_with_a_summary() -> None:
    assert describe(held(torch.tensor([[10, 0], [0, 2]]))).splitlines() == [
        "client  size  skew   0  1",
        "     0    10  0.17  10  0",
        "     1     2  0.83   0  2",
        "2 clients; images per client min / median / max 2 / 6 / 10; label skew (total variation) mean 0.50, max 0.83",
    ]
    assert describe(held(torch.ones(31, 2, dtype=torch.int64))).splitlines()[31] == "... and 1 more clients"


@pytest.mark.parametrize("clients", [1, 20, 300])
def test_the_figure_is_written(clients: int, tmp_path: Path) -> None:
    plot_held(held(torch.arange(clients * 10).view(clients, 10)), tmp_path / "labels.png")
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")


TEXTS = torch.tensor([[UNASKED, 1, 1], [UNASKED, 1, 0], [UNASKED, UNASKED, 2]])  # two clients: the first two, the third
SHARDS = Shards.cut(torch.arange(3), torch.tensor([2, 1]))


def test_of_texts_every_token_asked_is_a_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All: 1, 3, 1 of classes 0, 1, 2; the first client has (1, 3, 0) / 4: |1/20| + |3/20| + |4/20|, halved."""
    assert label_histogram(TEXTS, SHARDS, 3).tolist() == [[1, 3, 0], [0, 0, 1]]
    wanted = pytest.approx([0.2, 0.8])
    assert label_skews(TEXTS, SHARDS, 3).tolist() == wanted
    monkeypatch.setattr(figure, "CELLS", 3)  # a client at a time
    assert label_skews(TEXTS, SHARDS, 3).tolist() == wanted
    found = Held.of(TEXTS, SHARDS, 3, "samples")
    assert describe(found).splitlines() == [
        "client  size  skew",
        "     0     2  0.20",
        "     1     1  0.80",
        "2 clients; samples per client min / median / max 1 / 1.5 / 2;"
        " label skew (total variation) mean 0.50, max 0.80",
    ]
    plot_held(found, tmp_path / "held.png")
    assert (tmp_path / "held.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (dirichlet, {"alpha": 1.0, "min_size": 1}),
        (main_label, {"q": 0.5, "samples_per_client": 1}),
        (label_groups, {"q": 0.5}),
        (shards, {"shards_per_client": 1}),
    ],
)
def test_rules_about_classes_refuse_texts(rule: Any, settings: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"partition={rule.__name__} .* a label for each of their 3 tokens: take parti"
    ):
        rule(TEXTS, 2, Generator(), **settings)


def test_rules_about_sizes_deal_texts() -> None:
    assert iid(TEXTS, 2, Generator()).sizes.tolist() == [2, 1]
    assert int(iid_imbalanced(TEXTS, 2, Generator(), sigma=0.1, min_size=1).sizes.sum()) == 3
    assert int(quantity_skew(TEXTS, 2, Generator(), alpha=None, exponent=1.0, min_size=1).sizes.sum()) == 3
    with pytest.raises(
        ValueError, match=r"need 4 of N=3 samples, a partition that cannot fill every client: lower clie"
    ):
        iid(TEXTS, 4, Generator())
