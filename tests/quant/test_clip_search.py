from __future__ import annotations

import numpy as np
import paddle
import pytest

from quant import QuantError
from quant.clip_search import BINS, Magnitudes


def magnitudes(*arrays: np.ndarray) -> Magnitudes:
    seen = Magnitudes()
    for array in arrays:
        seen.add(paddle.to_tensor(array.astype(np.float32)))
    return seen


def error(x: np.ndarray, clip: float, bits: int) -> float:
    """Mean squared error of quantizing x with the scale `clip`, in float64."""
    r = 2 ** (bits - 1) - 1
    return float(np.mean((np.clip(np.rint(x / clip * r), -r, r) * clip / r - x) ** 2))


def samples(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    n = 50_000
    return {
        "normal": rng.normal(size=n),
        "laplace": rng.laplace(size=n),
        "relu": np.maximum(rng.normal(size=n), 0),
        "uniform": rng.uniform(-1, 1, size=n),
        "outliers": np.concatenate([rng.normal(size=n), rng.normal(size=20) * 40]),
        "tiny": rng.normal(size=n) * 1e-4,
    }[kind]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "uniform", "outliers", "tiny"])
def test_the_clip_is_about_as_good_as_the_best_of_all(kind, bits):
    x = samples(kind)
    found = magnitudes(x).best_clip(bits)
    largest = np.abs(x).max()
    assert 0 < found <= largest * (1 + 1e-6)
    best = min(error(x, c, bits) for c in np.linspace(largest / 500, largest, 500))
    # Two bits have one step on each side, over which errors are far from evenly spread.
    assert error(x, found, bits) <= best * (1.25 if bits == 2 else 1.03)


def test_outliers_are_clipped_and_a_uniform_tensor_is_not():
    outliers, uniform = samples("outliers"), samples("uniform")
    assert magnitudes(outliers).best_clip(8) < 0.9 * np.abs(outliers).max()
    np.testing.assert_allclose(magnitudes(uniform).best_clip(8), 1.0, rtol=0.01)


def test_fewer_bits_clip_more():
    clips = [magnitudes(samples("laplace")).best_clip(bits) for bits in (2, 3, 4, 6, 8)]
    assert clips == sorted(clips) and len(set(clips)) == 5


def test_batches_in_any_order_give_the_counts_of_all_their_values():
    parts = [np.full(5, 0.3), np.array([-8.0, 1.0, 0.0]), np.zeros(4), np.array([2.5])]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        seen = magnitudes(*(parts[i] for i in order))
        assert seen.largest == 8.0
        assert seen.limit >= 8.0
        nonzero = np.sort(np.abs(np.concatenate(parts)))[5:]
        bins = np.repeat(np.arange(BINS), seen.counts)[-len(nonzero) :]
        np.testing.assert_allclose((bins + 0.5) * seen.limit / BINS, nonzero, atol=16.0 / BINS)


def test_the_largest_value_is_counted_whatever_rounding_does():
    for value in np.random.default_rng(0).uniform(1e-6, 1e6, size=200):
        assert magnitudes(np.array([value, value / 3])).counts.sum() == 2


def test_nothing_or_only_zeros_give_no_clip():
    assert Magnitudes().best_clip(8) == 0.0
    assert magnitudes(np.zeros(10)).best_clip(8) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(QuantError, match="NaN or infinity"):
        magnitudes(np.array([1.0, value]))


def test_half_precision_is_counted_like_single():
    x = samples("normal")[:1000].astype(np.float16)
    seen = Magnitudes()
    seen.add(paddle.to_tensor(x))
    assert seen.counts.sum() == 1000
    np.testing.assert_allclose(seen.largest, np.abs(x).max())
