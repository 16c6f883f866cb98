"""The C++ kernels against the Paddle operators of functional.py: the same bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest

from quant import QAT, functional, native
from quant.grid import Grid, signed, symmetric, unsigned

pytestmark = pytest.mark.skipif(
    shutil.which(native.compiler()) is None, reason="there is no C++ compiler"
)
SHAPES = [(1,), (7,), (3, 5), (2, 3, 1, 1), (4, 8, 9, 7), (2, 16, 130, 131)]
GRIDS = [symmetric(8), signed(8), unsigned(8), symmetric(4), symmetric(2), symmetric(16)]


def without_kernels(monkeypatch) -> None:
    monkeypatch.setattr(native, "runs_on", lambda x: False)


def values(shape: tuple[int, ...], seed: int = 0, size: float = 3.0) -> paddle.Tensor:
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(size)
    return paddle.to_tensor(x)


def same_bits(a: paddle.Tensor, b: paddle.Tensor) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_array_equal(a.numpy().view(np.uint32), b.numpy().view(np.uint32))


def test_the_kernels_are_in_use():
    assert native.runs_on(values((3, 4)))
    assert not native.runs_on(values((3, 4)).astype("float64"))
    assert not native.runs_on(paddle.zeros([0, 3]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_abs_max(shape, axis, monkeypatch):
    if axis is not None and axis >= len(shape):
        pytest.skip("no such axis")
    axis = len(shape) - 1 if axis == -1 else axis
    x = values(shape)
    fused = functional.abs_max(x, axis)
    others = tuple(i for i in range(len(shape)) if i != axis)
    expected = np.abs(x.numpy()).max(axis=None if axis is None else others)
    np.testing.assert_array_equal(fused.numpy().ravel(), np.ravel(expected))
    without_kernels(monkeypatch)
    same_bits(fused, functional.abs_max(x, axis))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_fake_quantization_of_a_tensor(shape, grid, monkeypatch):
    x = values(shape)
    for share in (0.0, 0.3, 1.0, 50.0):
        scale = functional.abs_max(x) * share
        fused = functional.quantize_dequantize(x, scale, grid)
        with monkeypatch.context() as plain:
            without_kernels(plain)
            same_bits(fused, functional.quantize_dequantize(x, scale, grid))


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_fake_quantization_per_channel(axis, monkeypatch):
    x = values((5, 6, 7, 8))
    x[2] = 0.0
    scale = functional.abs_max(x, axis)
    fused = functional.quantize_dequantize(x, scale, symmetric(8))
    without_kernels(monkeypatch)
    same_bits(fused, functional.quantize_dequantize(x, scale, symmetric(8)))


def test_a_grid_that_only_cuts(monkeypatch):
    x, grid = values((3, 40000)), Grid(8, -128, 127, rounds=False)
    scale = functional.abs_max(x) * 0.4
    fused = functional.quantize_dequantize(x, scale, grid)
    without_kernels(monkeypatch)
    same_bits(fused, functional.quantize_dequantize(x, scale, grid))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_very_small_and_very_large_values(size, monkeypatch):
    x = values((64, 64), size=size)
    scale = functional.abs_max(x)
    fused = functional.quantize_dequantize(x, scale, symmetric(8))
    without_kernels(monkeypatch)
    same_bits(fused, functional.quantize_dequantize(x, scale, symmetric(8)))


def test_halves_go_to_the_even_code():
    codes = np.arange(-127, 127, dtype=np.float32) + np.float32(0.5)
    y = functional.quantize_dequantize(
        paddle.to_tensor(codes), paddle.to_tensor([127.0]), symmetric(8)
    )
    np.testing.assert_array_equal(y.numpy(), np.rint(codes))


def test_a_view_with_other_strides(monkeypatch):
    x = values((6, 10, 4)).transpose([2, 0, 1])
    scale = functional.abs_max(x, 1)
    np.testing.assert_array_equal(
        scale.numpy().ravel(), np.abs(x.numpy()).max(axis=(0, 2)), strict=True
    )
    fused = functional.quantize_dequantize(x, scale, symmetric(8))
    without_kernels(monkeypatch)
    same_bits(fused, functional.quantize_dequantize(x, scale, symmetric(8)))


def test_the_largest_magnitude_of_a_tensor_with_nan_is_nan():
    x = np.ones((3, 50000), np.float32)
    x[1, 777] = np.nan
    assert np.isnan(functional.abs_max(paddle.to_tensor(x)).item())


@pytest.mark.parametrize("alpha", [0.5, 2.0, 100.0])
def test_the_gradients_of_pact(alpha, monkeypatch):
    x, grad = values((3, 70000)), values((3, 70000), seed=1)
    bound = paddle.to_tensor([alpha], dtype="float32")
    dx, dalpha = functional.pact_gradients(x, bound, grad)
    above, below = x.numpy() > np.float32(alpha), x.numpy() < -np.float32(alpha)
    np.testing.assert_array_equal(dx.numpy(), np.where(above | below, 0, grad.numpy()))
    exact = grad.numpy().astype(np.float64)
    assert dalpha.item() == pytest.approx(exact[above].sum() - exact[below].sum(), rel=1e-5)
    without_kernels(monkeypatch)
    plain = functional.pact_gradients(x, bound, grad)
    same_bits(dx, plain[0])
    # Summed in another order, so the last bits may differ.
    assert plain[1].item() == pytest.approx(dalpha.item(), rel=1e-4, abs=1e-3)


class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.norm = paddle.nn.Conv2D(3, 8, 3), paddle.nn.BatchNorm2D(8)
        self.b, self.fc = paddle.nn.Conv2D(8, 8, 3, groups=8), paddle.nn.Linear(8, 5)

    def forward(self, x):
        x = self.b(paddle.nn.functional.relu(self.norm(self.a(x))))
        return self.fc(x.mean(axis=[2, 3]))


@pytest.mark.parametrize("config", [{}, {"weight_quantize_type": "abs_max"}, {"weight_bits": 4}])
def test_training_gives_the_same_weights(config, monkeypatch):
    def train() -> list[np.ndarray]:
        paddle.seed(3)
        net = QAT(config).quantize(Net())
        optimizer = paddle.optimizer.Momentum(0.1, parameters=net.parameters())
        for seed in range(4):
            loss = net(values((8, 3, 12, 12), seed)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
        return [value.numpy() for value in net.state_dict().values()]

    fused = train()
    without_kernels(monkeypatch)
    for a, b in zip(fused, train()):
        np.testing.assert_array_equal(a, b)


# --- building ----------------------------------------------------------------------------------


def test_one_of_several_processes_builds(tmp_path):
    code = (
        "import zlib, paddle, quant.functional as f, numpy as np\n"
        "x = paddle.to_tensor(np.arange(-9, 9, dtype='float32'))\n"
        "print('largest', f.abs_max(x).item())\n"
    )
    env = {**os.environ, "PADDLEQAT_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(_: int) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
        )

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, range(2)))
    assert all(item.returncode == 0 and "largest 9.0" in item.stdout for item in done)
    assert sum("compiling the kernels" in item.stderr for item in done) == 1
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == [".so"]


def test_without_a_compiler_one_line_says_so(tmp_path):
    code = (
        "import zlib, paddle, quant.functional as f\n"
        "x = paddle.to_tensor([1.0, -3.0])\n"
        "for _ in range(3):\n"
        "    print(f.abs_max(x).item())\n"
    )
    env = {**os.environ, "PADDLEQAT_CACHE_DIR": str(tmp_path), "CXX": "no-such-compiler"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["3.0"] * 3
    notes = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and "no C++ compiler (no-such-compiler)" in notes[0]


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    source = tmp_path / "broken.cc"
    source.write_text("this is not C++")
    monkeypatch.setattr(native, "SOURCE", source)
    with pytest.raises(native.BuildError, match="the compiler failed: .*error"):
        native.library(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["build.lock"]


def test_the_source_for_the_gpu_compiles(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    done = subprocess.run(
        ["nvcc", "-c", str(native.CUDA_SOURCE), "-o", str(tmp_path / "fake_quant.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
