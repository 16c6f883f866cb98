from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import Predictor, VerifyError, save_float_model


@pytest.fixture
def sum_of_two(tmp_path):
    class Sum(nn.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(3, 2)

        def forward(self, x, y):
            return self.a(x) + self.b(y), self.a(x)

    net, prefix = Sum(), str(tmp_path / "sum")
    spec = [paddle.static.InputSpec([None, n], "float32") for n in (4, 3)]
    assert save_float_model(net, prefix, spec) == (tmp_path / "sum.pdiparams").stat().st_size
    return net, prefix


@pytest.mark.parametrize("engine", ["paddle", "onednn"])
def test_it_runs_any_number_of_rows_and_takes_inputs_in_order(engine, sum_of_two):
    net, prefix = sum_of_two
    predictor = Predictor(prefix, engine)
    for rows in (1, 5, 2):
        x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
        y = np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)
        found = predictor([x, y])
        expected = net(paddle.to_tensor(x), paddle.to_tensor(y))
        assert len(found) == 2
        for a, b in zip(expected, found):
            np.testing.assert_allclose(b, a.numpy(), rtol=1e-4, atol=1e-5)


def test_an_array_that_is_not_contiguous_is_read_right(sum_of_two):
    net, prefix = sum_of_two
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)[::2, ::2]
    y = np.asfortranarray(np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32))
    expected = net(paddle.to_tensor(x.copy()), paddle.to_tensor(y.copy()))[0]
    np.testing.assert_allclose(Predictor(prefix)((x, y))[0], expected, rtol=1e-4, atol=1e-5)


def test_results_are_copies(sum_of_two):
    predictor = Predictor(sum_of_two[1])
    first = predictor([np.ones([2, 4], np.float32), np.ones([2, 3], np.float32)])[0]
    before = first.copy()
    predictor([np.zeros([2, 4], np.float32), np.zeros([2, 3], np.float32)])
    np.testing.assert_array_equal(first, before)


def test_an_unknown_engine_is_an_error(sum_of_two):
    with pytest.raises(VerifyError, match="engine='tensorrt'.*paddle.*onednn"):
        Predictor(sum_of_two[1], "tensorrt")


def test_a_missing_file_is_an_error(sum_of_two, tmp_path):
    with pytest.raises(VerifyError, match=r"none\.pdmodel does not exist"):
        Predictor(str(tmp_path / "none"))
    (tmp_path / "sum.pdiparams").unlink()
    with pytest.raises(VerifyError, match=r"sum\.pdiparams does not exist"):
        Predictor(sum_of_two[1])


def test_the_wrong_number_of_inputs_is_an_error(sum_of_two):
    with pytest.raises(VerifyError, match="takes 2 inputs, 1 were given"):
        Predictor(sum_of_two[1])(np.ones([2, 4], np.float32))


def test_an_input_of_the_wrong_shape_is_an_error_of_one_line(sum_of_two):
    with pytest.raises(VerifyError) as caught:
        Predictor(sum_of_two[1])([np.ones([2, 9], np.float32), np.ones([2, 3], np.float32)])
    assert "does not run" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_was_cut_short_is_named_with_the_place(sum_of_two, tmp_path):
    prefix = sum_of_two[1]
    stored = Path(f"{prefix}.pdiparams").read_bytes()
    (tmp_path / "cut.pdiparams").write_bytes(stored[:-3])
    shutil.copy(f"{prefix}.pdmodel", tmp_path / "cut.pdmodel")
    with pytest.raises(VerifyError, match=r"cut\.pdiparams is damaged at byte \d+: ") as caught:
        Predictor(str(tmp_path / "cut"))
    assert "\n" not in str(caught.value)


def test_weights_of_another_export_are_not_taken_for_the_right_ones(tmp_path):
    """The same sizes, other values: what a disk that lost a bit leaves, or a mixed-up copy."""
    for name, seed in (("a", 0), ("b", 1)):
        paddle.seed(seed)
        spec = [paddle.static.InputSpec([None, 4], "float32")]
        save_float_model(nn.Linear(4, 3), str(tmp_path / name), spec)
    x = np.ones([2, 4], np.float32)
    assert not np.array_equal(*(Predictor(str(tmp_path / name))(x)[0] for name in "ab"))
    (tmp_path / "a.pdiparams").write_bytes((tmp_path / "b.pdiparams").read_bytes())
    with pytest.raises(VerifyError, match=r"a\.pdiparams is damaged, or was not written together"):
        Predictor(str(tmp_path / "a"))
