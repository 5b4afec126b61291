"""Rules against byzfl 0.0.11, where it has them; only these tests need it (`pip install --no-deps byzfl==0.0.11`)."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from test_defenses import a_round, answer
from torch import Generator, Tensor

from flame.defenses.bucketing import buckets
from flame.defenses.centered_clipping import CenteredClipping
from flame.defenses.krum import Krum
from flame.defenses.nnm import neighbours
from flame.defenses.norm_clip import NormClip
from flame.defenses.rfa import RFA
from flame.defenses.trimmed_mean import TrimmedMean

CASES = [(n, f, seed) for n, f in ((5, 1), (12, 2), (21, 5)) for seed in range(5)]


@pytest.fixture(scope="module")
def byzfl() -> Any:
    """byzfl's aggregators alone: the package's own __init__ imports plotting libraries that nobody needs here."""
    found = importlib.util.find_spec("byzfl")
    if found is None:
        pytest.skip("byzfl is not installed")
    package = ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def rows(n: int, seed: int) -> Tensor:
    """[n, 3] with a fifth of the clients far off."""
    matrix = torch.randn(n, 3, generator=Generator().manual_seed(seed))
    matrix[: n // 5] += 8
    return matrix


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_krum(byzfl: Any, n: int, f: int, seed: int) -> None:
    """byzfl sums the n - f - 1 nearest, the paper the n - f - 2, so its f counts one more."""
    matrix = rows(n, seed)
    ours = answer(Krum(malicious_share=f / n, keep=1), a_round(matrix))
    torch.testing.assert_close(ours.state.row, byzfl.Krum(f=f + 1)(matrix))
    ours = answer(Krum(malicious_share=f / n, keep=n - f - 1), a_round(matrix))
    torch.testing.assert_close(ours.state.row, byzfl.MultiKrum(f=f + 1)(matrix))


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_coordinatewise(byzfl: Any, n: int, f: int, seed: int) -> None:
    matrix = rows(n, seed)
    torch.testing.assert_close(
        answer(TrimmedMean(trim=f / n), a_round(matrix)).state.row, byzfl.TrMean(f=f)(matrix), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        answer(TrimmedMean(trim=0.5), a_round(matrix)).state.row, byzfl.Median()(matrix), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_geometric_median(byzfl: Any, n: int, f: int, seed: int) -> None:
    """byzfl starts at 0, so that only where both end can be compared."""
    matrix = rows(n, seed)
    ours = answer(RFA(iterations=1000, smoothing=0.1), a_round(matrix)).state.row
    torch.testing.assert_close(ours, byzfl.GeometricMedian(nu=0.1, T=300)(matrix), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_norm_clipping(byzfl: Any, n: int, f: int, seed: int) -> None:
    """Norms of ordinary rows are about 1.7: the bound is on both sides of them."""
    matrix = rows(n, seed)
    ours = answer(NormClip(bound=1.5, noise_std=0.0), a_round(matrix)).state.row
    theirs = byzfl.Average()(byzfl.Clipping(c=1.5)(matrix.clone()))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
@pytest.mark.parametrize("iterations", [1, 3])
def test_centered_clipping_over_three_rounds(byzfl: Any, n: int, f: int, seed: int, iterations: int) -> None:
    theirs, ours = byzfl.CenteredClipping(L=iterations, tau=1.5), CenteredClipping(bound=1.5, iterations=iterations)
    state = None
    for number in range(3):  # each starts at the last answer
        matrix = rows(n, 10 * seed + number)
        state = answer(ours, a_round(matrix), state).state
        torch.testing.assert_close(state.row, theirs(matrix), atol=1e-5, rtol=1e-5)
        state = replace(state, row=torch.zeros(3))


@pytest.mark.parametrize(("n", "f", "seed"), CASES)
def test_mixing(byzfl: Any, n: int, f: int, seed: int) -> None:
    matrix = rows(n, seed)
    squared = a_round(matrix).geometry.squared_distances("weights_only")
    torch.testing.assert_close(neighbours(squared, n - f).float() @ matrix, byzfl.NNM(f)(matrix))
    with torch.random.fork_rng(devices=[]):  # byzfl draws from the global generator
        torch.manual_seed(seed)
        theirs = byzfl.Bucketing(s=2)(matrix)
        torch.manual_seed(seed)
        order = torch.randperm(n)
    torch.testing.assert_close(buckets(order, 2).float() @ matrix, theirs)
