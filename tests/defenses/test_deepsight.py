"""DeepSight's three views of a model and what follows from them, by hand."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from typing import Any

import pytest
import torch
from labs import Constant, Tiny, honest, laboratory
from test_defenses import a_round, answer, assert_close, stream
from torch import Tensor

from flame.defenses.deepsight import DeepSight, bias_updates, ddifs, neups, threshold_exceedings
from flame.defenses.points import distances
from flame.geometry.layout import StateLayout

DEEPSIGHT = DeepSight(tau=1 / 3, min_cluster_size=2, min_samples=1, seeds=3, samples=2)


def test_deepsight_looks_at_the_output_layer() -> None:
    heads = [[3, 4], [0, 5], [0, 0], [-4, 3], [1, 3]]
    updates = a_round([[7, *head] for head in heads])
    assert_close(neups(updates).flatten(), 0.36, 0.64, 0, 1, 0, 0, 0.64, 0.36, 0.1, 0.9)
    assert threshold_exceedings(neups(updates)).tolist() == [2, 1, 0, 2, 1]  # more than half of the largest
    assert torch.equal(bias_updates(updates), updates.rows[:, 1:])
    layout = StateLayout.from_state({"o.weight": torch.zeros(2, 2), "o.bias": torch.zeros(2)}, ["o.weight", "o.bias"])
    updates = a_round([[1, -1, 2, 2, 0, -4]], layout=layout)  # |weights| 2 and 4, |bias| 0 and 4
    assert_close(neups(updates).flatten(), 4 / 68, 64 / 68)
    assert_close(bias_updates(updates).flatten(), 0, -4)


def test_ddifs_by_hand() -> None:
    even, skewed, broken = [0.0, 0.0], [0.0, log(3)], [torch.nan, 0.0]  # probabilities 1/2, 1/2 and 1/4, 3/4
    models = [[even, skewed], [skewed, even], [even, skewed], [broken, skewed], [[0.0, -5000], skewed]]
    found = ddifs(torch.tensor(models)[:, None])  # one seed of two inputs; the global model and four clients
    assert_close(found[0, 0], (1 / 2 + 2) / 2, (3 / 2 + 2 / 3) / 2)
    assert_close(found[0, 1], 1, 1)
    assert_close(found[0, 2] / exp(100), 0.5, 0.5)
    assert_close(found[0, 3], (2 + 1) / 2, (exp(-100) + 1) / 2)
    seeds = torch.randn(5, 3, 4, 2, generator=stream())
    assert torch.equal(ddifs(seeds), torch.cat([ddifs(seeds[:, [i]]) for i in range(3)]))


def test_deepsight_tries_every_model_on_the_same_inputs() -> None:
    net = Tiny(inputs=4, hidden=3, classes=2)
    layout = StateLayout.of(net)
    updates = a_round(torch.zeros(2, layout.size), layout, 0.1 * torch.randn(layout.size, generator=stream()).abs())
    updates = replace(updates, lab=laboratory(net, (1, 2, 2), honest(2)))
    found = torch.stack(list(DEEPSIGHT.outputs(updates, stream())))
    assert found.shape == (3, 3, 2, 2)  # models, seeds, samples, classes
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert len(found[0].flatten(0, 1).unique(dim=0)) == 6  # six different inputs


def test_deepsight_rejects_suspicious_clusters_and_loners() -> None:
    benign = [[1, 3, 4.0], [1, 3, 4.1], [1, 3.1, 4], [1, 3, 3.9]]
    with pytest.raises(ValueError, match=r"defense=deepsight tries models.*no laboratory"):
        answer(DEEPSIGHT, a_round(benign))
    loner = answer(DEEPSIGHT, a_round([*benign, [1, 0, -5]], lab=laboratory(Constant(), (1, 1, 1), honest(5))))
    assert_close(loner.weights, 0.25, 0.25, 0.25, 0.25, 0)
    lab = laboratory(Constant(), (1, 1, 1), honest(6))
    pair = answer(DEEPSIGHT, a_round([*benign, [1, 0, -5], [1, 0.1, -5]], lab=lab))
    assert_close(pair.weights, 0.25, 0.25, 0.25, 0.25, 0, 0)
    assert pair.info["deepsight/suspicious"] == 2
    assert DEEPSIGHT.apart(distances(torch.tensor([[0.0], [0.1], [5], [5.1]]).double()), False).tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
    ]


class Shifted(Constant):
    """Its trunk moves the second logit."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.body["w"] * torch.tensor([0.0, 1.0])


@pytest.mark.parametrize(("shift", "accepted"), [(0.0, True), (5.0, False)])
def test_deepsight_tells_models_apart_by_their_outputs(shift: float, accepted: bool) -> None:
    """Two suspicious clients have the output layers of five others, which hide them unless their trunks give them away.

    A second class of less than 3 / sqrt(2) = 2.1213 is no exceeding. Three more clients give HDBSCAN a second cluster.
    """
    five, two, three = (2.1218, 2.123, 2.13, 2.14, 2.16), (2.1208, 2.12), (3.0, 3.01, 3.03)
    rows = [[0, 3, x] for x in five] + [[shift, 3, x] for x in two] + [[0, 3, x] for x in three]
    verdict = answer(DEEPSIGHT, a_round(rows, lab=laboratory(Shifted(), (1, 1, 1), honest(10))))
    assert verdict.info["deepsight/suspicious"] == 2
    assert verdict.accepted.tolist() == [True] * 5 + [accepted] * 2 + [True] * 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(DEEPSIGHT, tau=0.0), "defense.tau=0.0"),
        (lambda: replace(DEEPSIGHT, min_cluster_size=1), "defense.min_cluster_size=1"),
        (lambda: replace(DEEPSIGHT, seeds=0), "defense.seeds=0"),
        (lambda: replace(DEEPSIGHT, samples=0), "defense.samples=0"),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
