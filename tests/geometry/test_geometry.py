"""Geometry against a float64 twin that looks at whole models, and the properties distances must have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

import flame.geometry.products
from flame.geometry.layout import COUNTERS, SCOPES, Entry, StateLayout, scope_blocks
from flame.geometry.products import Geometry, Products, inner_products, squared_distances
from flame.round.types import ServerState, Updates

SIZES = {"trunk": 4000, "head": 60, "running_mean": 40, "running_var": 40}
Recorded = Callable[..., tuple[ServerState, Updates]]


def layout_of(sizes: dict[str, int]) -> StateLayout:
    entries, start = [], 0
    for block, size in sizes.items():
        entries.append(Entry(block, (size,), start, start := start + size, block))
    return StateLayout(tuple(entries), (), tuple(sizes))


def sample(seed: int, n: int, scale: float, sizes: dict[str, int] | None = None) -> tuple[StateLayout, Tensor, Tensor]:
    """A global row of unit entries, and n updates of `scale` with a common drift."""
    layout = layout_of(sizes or SIZES)
    stream = Generator().manual_seed(seed)
    base = torch.randn(layout.size, generator=stream)
    rows = torch.randn(n, layout.size, generator=stream) + torch.randn(layout.size, generator=stream)
    return layout, base, rows * scale


def measure(layout: StateLayout, base: Tensor, rows: Tensor) -> Geometry:
    none = torch.zeros(0, dtype=torch.int64)
    return Geometry.measure(layout, base, rows, none, torch.zeros(len(rows), 0, dtype=torch.int64))


def direct_cosine(vectors: Tensor) -> Tensor:
    """1 - cos of every pair of rows, in their own precision."""
    unit = F.normalize(vectors, dim=1)
    return 1 - unit @ unit.T


def relative_error(found: Tensor, wanted: Tensor) -> float:
    off = ~torch.eye(len(wanted), dtype=torch.bool)
    return float(((found - wanted).abs() / wanted)[off].max())


@pytest.mark.parametrize("scope", ["weights_only", "all_state", "head"])
@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1.0])
def test_model_cosine_against_float64(scope: str, scale: float) -> None:
    layout, base, rows = sample(0, 12, scale)
    span = layout.span(scope)
    wanted = direct_cosine(base.double()[span] + rows.double()[:, span])
    assert relative_error(measure(layout, base, rows).cosine_distances(scope), wanted) < 1e-6


def test_distances_survive_float32_models() -> None:
    """Distances of 1e-6: from updates to 1e-6 relative, where the cosine of float32 models is wrong in the percents."""
    stream, d, n = Generator().manual_seed(0), 20_000, 6
    base = torch.randn(d, generator=stream)
    layout = StateLayout.from_state({"w": base}, ["w"])
    rows = 1e-3 * torch.randn(n, d, generator=stream)
    found = measure(layout, base, rows).cosine_distances("weights_only")
    exact = direct_cosine(base.double() + rows.double())
    assert exact[~torch.eye(n, dtype=torch.bool)].median() < 2e-6
    assert relative_error(found, exact) < 1e-6
    assert relative_error(direct_cosine(base + rows), exact) > 1e-2


def test_direct_float32_cosine_fails_where_this_does_not() -> None:
    layout, base, rows = sample(1, 12, 1e-3, {"trunk": 80_000, "head": 60})
    wanted = direct_cosine(base.double() + rows.double())
    assert 1e-7 < wanted[0, 1] < 1e-5
    assert relative_error(direct_cosine(base + rows).double(), wanted) > 1e-2
    assert relative_error(measure(layout, base, rows).cosine_distances("weights_only"), wanted) < 1e-6


@pytest.mark.parametrize("scope", SCOPES)
def test_recorded_updates_against_float64(updates: Recorded, scope: str) -> None:
    """Real blocks, integer counters included, through `Updates.geometry`."""
    _, sent = updates(seed=3, n=9)
    drift = (sent.counters - sent.base_counters).double()
    parts = [sent.rows.double()[:, sent.layout.span(scope)]]
    bases = [sent.base.double()[sent.layout.span(scope)]]
    if COUNTERS in scope_blocks(scope):
        parts, bases = [*parts, drift], [*bases, sent.base_counters.double()]
    u, g = torch.cat(parts, 1), torch.cat(bases)
    geometry = sent.geometry
    torch.testing.assert_close(geometry.norms(scope), u.norm(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(geometry.squared_distances(scope), torch.cdist(u, u) ** 2, rtol=1e-9, atol=1e-9)
    assert relative_error(geometry.cosine_distances(scope), direct_cosine(g + u)) < 1e-6
    assert relative_error(geometry.cosine_distances(scope, of="update"), direct_cosine(u)) < 1e-6


def test_products_by_hand() -> None:
    layout = layout_of({"trunk": 2, "head": 1})
    base, rows = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]])
    blocks = measure(layout, base, rows).blocks
    assert blocks["trunk"].gram.tolist() == [[5, -2], [-2, 1]]
    assert blocks["head"].gram.tolist() == [[9, 3], [3, 1]]
    assert blocks["trunk"].along.tolist() == [1, 0]
    assert blocks["head"].along.tolist() == [6, 2]
    assert (blocks["trunk"].base, blocks["head"].base) == (1, 4)
    geometry = measure(layout, base, rows)
    assert geometry.scope("all_state").gram.tolist() == [[14, 1], [1, 2]]
    assert geometry.squared_distances("all_state").tolist() == [[0, 14], [14, 0]]
    assert geometry.norms("head").tolist() == [3, 1]
    # local models: (2, 2, 5) and (1, -1, 3): cos = 15 / sqrt(33 * 11)
    assert geometry.cosine_distances("all_state")[0, 1] == pytest.approx(1 - 15 / 363**0.5, rel=1e-12)
    assert geometry.cosine_distances("all_state", of="update")[0, 1] == pytest.approx(1 - 1 / 28**0.5, rel=1e-12)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 7), scale=st.integers(-5, 2), of=st.sampled_from(["model", "update"])
)
def test_distances_are_distances(seed: int, n: int, scale: int, of: str) -> None:
    layout, base, rows = sample(seed, n, 10.0**scale, {"trunk": 30, "head": 5, "running_mean": 3})
    geometry = measure(layout, base, rows)
    for scope in ("weights_only", "all_state", "head"):
        distances = geometry.cosine_distances(scope, of)
        assert distances.shape == (n, n) and distances.dtype == torch.float64
        assert bool(((distances >= 0) & (distances <= 2)).all()) and not distances.diagonal().any()
        torch.testing.assert_close(distances, distances.T, rtol=1e-9, atol=1e-15)
        chord = geometry.squared_distances(scope).sqrt()  # Euclidean: the triangle inequality holds
        assert bool((chord[:, None, :] <= chord[:, :, None] + chord[None, :, :] + 1e-9).all())


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 7), factor=st.floats(1e-3, 1e3))
def test_order_and_length(seed: int, n: int, factor: float) -> None:
    """Clients may come in any order, and the cosine of updates does not see their lengths."""
    layout, base, rows = sample(seed, n, 0.1, {"trunk": 30, "head": 5})
    order = torch.randperm(n, generator=Generator().manual_seed(seed))
    before, after = measure(layout, base, rows), measure(layout, base, rows[order])
    for of in ("model", "update"):
        distances = before.cosine_distances("all_state", of)[order][:, order]
        torch.testing.assert_close(after.cosine_distances("all_state", of), distances, rtol=1e-9, atol=1e-14)
    longer = rows.clone()
    longer[0] *= factor
    stretched = measure(layout, base, longer).cosine_distances("all_state", "update")
    torch.testing.assert_close(stretched, before.cosine_distances("all_state", "update"), rtol=1e-5, atol=1e-6)


def test_chunks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, base, rows = sample(4, 5, 0.1)
    whole = measure(layout, base, rows)
    monkeypatch.setattr(
        flame.geometry.products, "CHUNK_ELEMENTS", 1
    )  # the smallest chunk: 512 columns, 4000 = 7 * 512 + 416
    cut = measure(layout, base, rows)
    for name, products in whole.blocks.items():
        for field in ("gram", "along", "base"):
            wanted = getattr(products, field)
            torch.testing.assert_close(getattr(cut.blocks[name], field), wanted, rtol=1e-12, atol=1e-12)


def test_select_is_measuring_the_selected() -> None:
    layout, base, rows = sample(5, 6, 0.1)
    keep = torch.tensor([True, False, True, True, False, True])
    part, anew = measure(layout, base, rows).select(keep), measure(layout, base, rows[keep])
    for scope in ("weights_only", "all_state"):
        torch.testing.assert_close(part.cosine_distances(scope), anew.cosine_distances(scope), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(part.norms(scope), anew.norms(scope), rtol=1e-12, atol=0)


def test_a_broken_row_stays_alone() -> None:
    """NaN and Inf in one update leave the products of the others as they are."""
    layout, base, rows = sample(6, 4, 0.1)
    rows[1, 7], rows[2, 9] = float("nan"), float("inf")
    keep = torch.tensor([True, False, False, True])
    broken = measure(layout, base, rows)
    assert broken.norms("all_state").isfinite().tolist() == keep.tolist()
    part, clean = broken.select(keep), measure(layout, base, rows[keep])
    torch.testing.assert_close(part.cosine_distances("all_state"), clean.cosine_distances("all_state"))


def test_zero_vectors() -> None:
    """A vector without direction is at distance 1 from every other and 0 from itself."""
    layout, _, rows = sample(7, 3, 0.1)
    rows[1] = 0
    wanted = [[0, 1], [1, 0]]
    assert measure(layout, torch.zeros(layout.size), rows).cosine_distances("all_state")[:2, :2].tolist() == wanted
    assert measure(layout, rows[0], rows).cosine_distances("all_state", "update")[:2, :2].tolist() == wanted
    idle = measure(layout, rows[0], torch.zeros(2, layout.size))  # nobody moved: all models are the same
    assert not idle.cosine_distances("all_state").any() and not idle.norms("all_state").any()


def test_identical_updates_are_at_zero() -> None:
    _, base, rows = sample(8, 1, 0.1)
    geometry = measure(layout_of(SIZES), base, rows.repeat(4, 1))
    assert geometry.squared_distances("all_state").max() < 1e-12
    assert geometry.cosine_distances("all_state").max() < 1e-12


def test_squared_distances_never_fall_below_zero() -> None:
    gram = torch.tensor([[1.0, 1.0 + 1e-15], [1.0 + 1e-15, 1.0]], dtype=torch.float64)
    assert squared_distances(gram).tolist() == [[0, 0], [0, 0]]


# large matrices are multiplied in float32, about a common centre


@pytest.mark.parametrize(("n", "d"), [(3, 40_000), (12, 20_000), (300, 5_000)])
@pytest.mark.parametrize("drift", [0.0, 1.0, 30.0])
def test_float32_products_about_a_centre(monkeypatch: pytest.MonkeyPatch, n: int, d: int, drift: float) -> None:
    """Distances within 1e-6 of float64, whatever the clients have in common; plain float32 loses them to the drift."""
    stream = Generator().manual_seed(n)
    rows = torch.randn(n, d, generator=stream) + drift * torch.randn(d, generator=stream)
    base = 100 * torch.randn(d, generator=stream)
    wanted = Products.measure(base, rows)
    monkeypatch.setattr(flame.geometry.products, "EXACT_ELEMENTS", 0)
    found = Products.measure(base, rows)
    assert relative_error(squared_distances(found.gram), squared_distances(wanted.gram)) < 1e-6
    assert relative_error(found.cosine_distances(), wanted.cosine_distances()) < 1e-6
    torch.testing.assert_close(found.gram, wanted.gram, rtol=1e-6, atol=1e-6 * float(wanted.gram.max()))
    torch.testing.assert_close(found.along, wanted.along, rtol=0, atol=1e-6 * float(wanted.base.sqrt() * d**0.5))
    if drift > 10:
        plain = squared_distances((rows @ rows.T).double())
        assert relative_error(plain, squared_distances(wanted.gram)) > 1e-5


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e38, -1e18, 1e6])
def test_one_client_cannot_drown_the_others_distances(monkeypatch: pytest.MonkeyPatch, poison: float) -> None:
    stream = Generator().manual_seed(0)
    rows = torch.randn(8, 9_000, generator=stream)
    wanted = squared_distances(Products.measure(rows[0], rows[:7]).gram)
    rows[7, 4_000:] = poison
    monkeypatch.setattr(flame.geometry.products, "EXACT_ELEMENTS", 0)
    found = Products.measure(rows[0], rows).gram
    assert relative_error(squared_distances(found[:7, :7]), wanted) < 1e-6
    assert not torch.isfinite(found[7, 7]) or found[7, 7] > 1e12


def test_a_norm_that_rounds_below_zero_is_zero_and_broken_ones_show() -> None:
    squares = torch.tensor([-1e-9, 4.0, torch.nan, torch.inf], dtype=torch.float64)
    block = Products(torch.diag(squares), squares, squares[1])
    norms = Geometry({"trunk": block}).norms("weights_only")
    torch.testing.assert_close(norms, torch.tensor([0, 2, torch.nan, torch.inf]).double(), equal_nan=True)


# lengths and inner products are never differences of larger terms, on either side of the threshold


def short_among_long(n: int, d: int, shortness: float) -> tuple[Tensor, Tensor]:
    """A base, and rows with a common drift; the first is `shortness` times as long, the second in its first half."""
    stream = Generator().manual_seed(11)
    rows = torch.randn(n, d, generator=stream).add_(torch.randn(d, generator=stream))
    rows[0] *= shortness
    rows[1, : d // 2] *= shortness
    return torch.randn(d, generator=stream), rows


def check_products(base: Tensor, rows: Tensor) -> None:
    """Within 1e-6 of float64, each relative to the two lengths it belongs to."""
    found, wide = Products.measure(base, rows), rows.double()
    lengths = wide.norm(dim=1)
    torch.testing.assert_close(found.gram.diagonal().sqrt(), lengths, rtol=1e-6, atol=0)
    scale = lengths.clamp_min(1e-300)
    torch.testing.assert_close(
        found.gram / scale / scale[:, None], wide @ wide.T / scale / scale[:, None], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        found.along / scale / base.norm(), wide @ base.double() / scale / base.norm(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("shortness", [0.6, 0.4, 1e-2, 1e-6, 0.0])
def test_a_short_update_has_its_own_length(monkeypatch: pytest.MonkeyPatch, exact: bool, shortness: float) -> None:
    base, rows = short_among_long(8, 20_000, shortness)
    monkeypatch.setattr(flame.geometry.products, "EXACT_ELEMENTS", rows.numel() - (not exact))
    monkeypatch.setattr(flame.geometry.products, "CACHED_ELEMENTS", 1)  # the smallest chunk: 2048 columns
    check_products(base, rows)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_short_update_at_the_real_threshold(beyond: int) -> None:
    d = flame.geometry.products.EXACT_ELEMENTS // 4 + beyond
    check_products(*short_among_long(4, d, 1e-6))


def test_a_majority_of_broken_rows_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their median length is Inf, so all would be of usual length."""
    _, rows = short_among_long(5, 9_000, 1.0)
    wanted = Products.measure(rows[0], rows[:2]).gram
    rows[2:] = 1e30
    monkeypatch.setattr(flame.geometry.products, "EXACT_ELEMENTS", 0)
    torch.testing.assert_close(Products.measure(rows[0], rows).gram[:2, :2], wanted, rtol=1e-6, atol=0)


def test_inner_products_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    base, rows = short_among_long(3, 3_000, 1e-6)
    monkeypatch.setattr(flame.geometry.products, "CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(inner_products(rows, base), rows.double() @ base.double(), rtol=1e-14, atol=1e-14)
