from __future__ import annotations

import numpy as np
import paddle
import pytest

from quant.functional import fake_quant
from quant.grid import signed, symmetric, unsigned


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_three_grids(bits):
    assert (symmetric(bits).low, symmetric(bits).high) == (
        -(2 ** (bits - 1)) + 1,
        2 ** (bits - 1) - 1,
    )
    info = {8: (np.int8, np.uint8)}.get(bits)
    if info:
        assert (signed(8).low, signed(8).high) == (np.iinfo(info[0]).min, np.iinfo(info[0]).max)
        assert (unsigned(8).low, unsigned(8).high) == (np.iinfo(info[1]).min, np.iinfo(info[1]).max)
    assert signed(bits).high - signed(bits).low + 1 == unsigned(bits).high + 1 == 2**bits
    assert unsigned(bits).is_unsigned and not signed(bits).is_unsigned


@pytest.mark.parametrize(
    "grid", [symmetric(8), signed(8), unsigned(8), unsigned(4), signed(3)], ids=str
)
def test_fake_quant_is_the_formula_on_every_grid(grid):
    x = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 1.5
    scale = np.float32(1.25)
    ours = fake_quant(paddle.to_tensor(x), paddle.to_tensor([scale]), grid).numpy()
    codes = np.clip(np.rint(x.astype(np.float64) / scale * grid.high), grid.low, grid.high)
    expected = codes * scale / grid.high
    # A value on the edge between two codes may fall to either side in float32.
    off = np.abs(ours - expected) > 1e-5
    edge = np.abs(np.abs(x / scale * grid.high % 1) - 0.5) < 1e-3
    assert not (off & ~edge).any() and off.mean() < 0.01
    assert ours.min() >= grid.low * scale / grid.high - 1e-6 and ours.max() <= scale + 1e-6


def test_quantizing_twice_changes_nothing():
    rng = np.random.default_rng(0)
    for grid in (symmetric(8), signed(8), unsigned(8)):
        for scale in rng.uniform(0.01, 20, size=50).astype(np.float32):
            x = paddle.to_tensor(rng.normal(size=500).astype(np.float32) * scale)
            once = fake_quant(x, paddle.to_tensor([scale]), grid)
            twice = fake_quant(once, paddle.to_tensor([scale]), grid)
            np.testing.assert_array_equal(once.numpy(), twice.numpy())
