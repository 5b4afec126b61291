"""What is shown of a partition: the histogram of labels, their skew, the table and the figure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flame.data.samples import Shards
from flame.partition.figure import describe, label_histogram, label_skew, plot_label_histogram


def test_histogram_and_skew_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    parts = Shards.cut(torch.tensor([0, 1, 2, 3, 4, 5, 5]), torch.tensor([3, 1, 3]))
    histogram = label_histogram(labels, parts, 4)
    assert histogram.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0]]
    # the mix of all is (2, 2, 3) / 7; client 0 has (2, 1, 0) / 3: |8/21| + |1/21| + |9/21|, halved
    assert label_skew(histogram).tolist() == pytest.approx([9 / 21, 5 / 7, 4 / 7])
    assert label_skew(torch.tensor([[5, 5], [1, 1]])).tolist() == [0, 0]


def test_the_table_is_aligned_and_ends_with_a_summary() -> None:
    assert describe(torch.tensor([[10, 0], [0, 2]])).splitlines() == [
        "client  size  skew   0  1",
        "     0    10  0.17  10  0",
        "     1     2  0.83   0  2",
        "2 clients; images per client min / median / max 2 / 6 / 10; label skew (total variation) mean 0.50, max 0.83",
    ]
    assert describe(torch.ones(31, 2, dtype=torch.int64)).splitlines()[31] == "... and 1 more clients"


@pytest.mark.parametrize("clients", [1, 20, 300])
def test_the_figure_is_written(clients: int, tmp_path: Path) -> None:
    plot_label_histogram(torch.arange(clients * 10).view(clients, 10), tmp_path / "labels.png")
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")
