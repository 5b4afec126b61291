"""Rules that cluster clients, and the clustering they share: by hand, and against scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from typing import Any

import pytest
import torch
from labs import Constant, Tiny, honest, laboratory
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score
from test_defenses import a_round, answer, assert_close, stream
from torch import Tensor

from flame.defenses.deepsight import DeepSight, bias_updates, ddifs, neups, threshold_exceedings
from flame.defenses.fldetector import FLDetector, hessian_product
from flame.defenses.freqfed import FreqFed, frequencies
from flame.defenses.points import distances, embed, furthest_first, gap_clusters, kmeans, within
from flame.defenses.rflbat import RFLBAT, central, least_alike
from flame.defenses.snowball import calinski_harabasz
from flame.defenses.steps.vector import Cluster
from flame.layout import StateLayout
from flame.types import Updates

FREQFED = FreqFed(scope="weights_only", low=0.5, cluster=Cluster(None, 1, "precomputed"))
RFLBAT_DEFAULT = RFLBAT(first_filter=10.0, second_filter=4.0, most_clusters=9, references=5)
DEEPSIGHT = DeepSight(tau=1 / 3, min_cluster_size=2, min_samples=1, seeds=3, samples=2)
FLDETECTOR = FLDetector(window=3, most_clusters=5, references=20)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


def test_embedding_keeps_distances_and_is_pca() -> None:
    rows = random(7, 40)
    points, centred = embed(rows @ rows.T), rows - rows.mean(0)
    torch.testing.assert_close(distances(points), torch.cdist(rows, rows), atol=1e-7, rtol=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(points[:, :2].abs(), (u * s)[:, :2].abs())


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_and_scores_are_those_of_scikit_learn(seed: int) -> None:
    points = random(12, 2, seed=seed)
    centres = furthest_first(points, 3)
    members = kmeans(points, centres)
    found = KMeans(3, init=centres.numpy(), n_init=1, tol=0, max_iter=1000).fit(points.numpy())
    assert members.argmax(1).tolist() == found.labels_.tolist()
    assert float(within(points, members)) == pytest.approx(found.inertia_)
    score = calinski_harabasz_score(points.numpy(), found.labels_)
    assert float(calinski_harabasz(points, members)) == pytest.approx(score)
    batch = torch.stack([random(12, 2, seed=9), points])
    assert torch.equal(kmeans(batch, furthest_first(batch, 3))[1], members)  # a batch is each of its members alone


def test_furthest_first_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [4.0], [10.0]], dtype=torch.float64)  # mean 3.75
    assert furthest_first(points, 3).flatten().tolist() == [10, 0, 4]


def test_gap_statistic_counts_groups() -> None:
    blob = 0.1 * random(30, 2)
    groups = torch.cat([blob + torch.tensor(centre) for centre in ((0.0, 0.0), (5.0, 0.0), (0.0, 5.0))])
    assert gap_clusters(groups, 9, 20, stream()) == 3
    assert gap_clusters(torch.rand(60, 2, generator=stream()).double(), 9, 20, stream()) == 1
    assert gap_clusters(torch.ones(5, 2).double(), 9, 20, stream()) == 1
    assert gap_clusters(torch.tensor([[0.2], [0.2], [0.2], [0.9]]).double(), 9, 20, stream()) == 2
    assert gap_clusters(1 + 1e-12 * random(5, 1), 9, 20, stream()) == 1  # rounding is no structure


def test_freqfed_sees_low_frequencies_only() -> None:
    assert_close(frequencies(torch.tensor([[3.0, 3.0], [1.0, -1.0]]), 0.5).flatten(), 18**0.5, 0)
    whole = frequencies(torch.eye(5), 1.0)
    torch.testing.assert_close(whole @ whole.T, torch.eye(5))  # orthonormal
    slow, fast = torch.ones(8), torch.tensor([1.0, -1.0] * 4)
    layout = StateLayout.from_state({"w": torch.zeros(6), "out.w": torch.zeros(2)}, ["w", "out.w"])
    rows = torch.stack([slow + 0.4 * random(1).float() * fast for _ in range(4)] + [-slow, fast - slow, 3 * fast])
    updates = a_round(rows, layout=layout, base=torch.linspace(1, 2, 8))
    verdict = answer(FREQFED, updates)
    assert_close(verdict.weights, *[0.25] * 4, 0, 0, 0)


def test_freqfed_with_all_frequencies_is_flames_filter(updates: Any) -> None:
    state, sent = updates(seed=3, n=9)
    verdict = replace(FREQFED, low=1.0)(state, sent, stream())
    assert torch.equal(verdict.accepted, FREQFED.cluster.accept(sent.geometry.cosine_distances("weights_only")))


def test_rflbat_by_stages() -> None:
    line = torch.tensor([[0.0], [1.0], [2.0], [100.0]], dtype=torch.float64)  # sums 103, 101, 101, 297: median 102
    everyone = torch.ones(4, dtype=torch.bool)
    assert central(line, everyone, 2.0).tolist() == [True, True, True, False]
    assert central(line, everyone, 3.0).tolist() == [True] * 4
    assert central(line, everyone & (line[:, 0] > 0), 1.0).tolist() == [False, True, True, False]  # 100, 99, 197
    cosines = torch.eye(5, dtype=torch.float64)
    cosines[:2, :2], cosines[2:4, 2:4] = 0.9, 0.3
    cosines.fill_diagonal_(1)
    members = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]).bool()
    assert least_alike(members, cosines).tolist() == [False, False, True, True, False]
    assert least_alike(torch.eye(3).bool(), cosines).tolist() == [True] * 3


def test_rflbat_rejects_updates_that_are_alike() -> None:
    benign = [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0.5, 0.5, 0]]
    verdict = answer(RFLBAT_DEFAULT, a_round([*benign, [20, 20, 0], [20.1, 20, 0], [20, 20.1, 0]]))
    assert_close(verdict.weights, *[0.2] * 5, 0, 0, 0)
    assert verdict.info == {"rflbat/clusters": 2.0}


def test_rflbat_filters_before_and_after_clustering() -> None:
    """The fifth client's distances in its cluster add up to 52, and the median is 18."""
    cluster, alike = [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 13, 0]], [[80, 80, 0], [81, 80, 0], [80, 81, 0]]
    lenient = RFLBAT(first_filter=1000.0, second_filter=1000.0, most_clusters=1, references=5)
    for strict in (replace(lenient, first_filter=2.0), replace(lenient, second_filter=2.0)):
        assert answer(strict, a_round(cluster)).accepted.tolist() == [True] * 4 + [False]
    assert answer(lenient, a_round(cluster)).accepted.tolist() == [True] * 5
    for factor, kept in ((2.0, False), (1000.0, True)):
        verdict = answer(replace(lenient, second_filter=factor, most_clusters=2), a_round([*cluster, *alike]))
        assert verdict.accepted.tolist() == [True] * 4 + [kept] + [False] * 3


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
    found = DEEPSIGHT.outputs(updates, stream())
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


def bfgs(aggregates: Tensor) -> Tensor:
    """H v by the textbook recursion with dense matrices, from sigma times the identity."""
    s, y = aggregates[:-1], aggregates.diff(dim=0)
    b = torch.eye(aggregates.shape[1], dtype=torch.float64) * (y[-1] @ s[-1]) / (s[-1] @ s[-1])
    for step, bend in zip(s, y, strict=True):
        b = b - torch.outer(b @ step, b @ step) / (step @ b @ step) + torch.outer(bend, bend) / (bend @ step)
    return b @ aggregates[-1]


@pytest.mark.parametrize("k", [2, 3, 6])
def test_hessian_product_is_that_of_the_dense_recursion(k: int) -> None:
    aggregates = random(k, 8, seed=k)
    torch.testing.assert_close(hessian_product(aggregates), bfgs(aggregates).float(), atol=1e-4, rtol=1e-4)


def test_hessian_product_in_one_dimension_is_the_ratio() -> None:
    assert_close(hessian_product(torch.tensor([[8.0, 0, 0], [4, 0, 0], [2, 0, 0]])), -1, 0, 0)  # each move halves
    assert_close(hessian_product(torch.zeros(3, 3)), 0, 0, 0)


def rounds_of(rows: list[list[list[float]]], rule: FLDetector = FLDETECTOR) -> list[Any]:
    """Verdicts on one round after the other."""
    state, verdicts = None, []
    for number, each in enumerate(rows):
        updates: Updates = a_round(each) if state is None else a_round(each, base=state.row)
        verdicts.append(answer(rule, updates, state))
        state = replace(verdicts[-1].state, round=number + 1)
    return verdicts


def test_fldetector_rejects_who_defies_prediction() -> None:
    honest = [[1.0, 0, 0]] * 4
    verdicts = rounds_of([[*honest, [1.0, 0, 0]], [*honest, [1.0, 0, 0]], [*honest, [1, 5, 0]], [*honest, [1, -5, 0]]])
    assert [v.info["fldetector/judged"] for v in verdicts] == [0, 0, 5, 5]
    assert [bool(v.accepted[4]) for v in verdicts] == [True, True, False, False]
    assert all(bool(v.accepted[:4].all()) for v in verdicts)
    memory = verdicts[-1].state.memory
    assert memory["defense/fldetector/scores/rows"][4].tolist() == [2, 5, 5, 0]  # two rounds, 5 times the mean error
    assert memory["defense/fldetector/update/rows"][4].tolist() == [1, -5, 0]
    assert memory["defense/fldetector/aggregates"].tolist() == [[1, 0, 0]] * 4


def test_fldetector_scores_alike_among_few_and_among_many() -> None:
    """Each client swings by 2 about the same prediction: in round 2 two of them are judged, in round 3 all ten."""
    state, signs, few = None, torch.tensor([1.0, -1] * 5), [0, 1, 6, 7, 8, 9]
    for number, ids in enumerate([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], few, list(range(10))]):
        rows = [[1.0, float(signs[i]), 0] for i in ids]
        updates = a_round(rows, base=None if state is None else state.row, ids=torch.tensor(ids))
        verdict = answer(FLDETECTOR, updates, state)
        assert bool(verdict.accepted.all())
        state, signs[ids] = replace(verdict.state, round=number + 1), -signs[ids]
    scores = verdict.state.memory["defense/fldetector/scores/rows"]
    assert scores[:2].tolist() == [[2, 1, 1, 0]] * 2 and scores[2:].tolist() == [[1, 1, 0, 0]] * 8


def test_fldetector_does_not_judge_newcomers() -> None:
    state = rounds_of([[[1.0, 0, 0]] * 5] * 3)[-1].state
    new = a_round([[1, 0, 0]] * 4 + [[9, 9, 9]], ids=torch.tensor([0, 1, 2, 3, 77]))
    verdict = answer(FLDETECTOR, new, state)
    assert bool(verdict.accepted.all()) and verdict.info["fldetector/judged"] == 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(FREQFED, scope="all_state"), "defense.scope='all_state'"),
        (lambda: replace(FREQFED, low=0.0), "defense.low=0.0"),
        (lambda: replace(RFLBAT_DEFAULT, first_filter=0.5), "defense.first_filter=0.5"),
        (lambda: replace(RFLBAT_DEFAULT, references=0), "defense.references=0"),
        (lambda: replace(DEEPSIGHT, tau=0.0), "defense.tau=0.0"),
        (lambda: replace(DEEPSIGHT, min_cluster_size=1), "defense.min_cluster_size=1"),
        (lambda: replace(DEEPSIGHT, seeds=0), "defense.seeds=0"),
        (lambda: replace(DEEPSIGHT, samples=0), "defense.samples=0"),
        (lambda: replace(FLDETECTOR, window=0), "defense.window=0"),
    ],
)
def test_settings_out_of_range_name_the_key(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
