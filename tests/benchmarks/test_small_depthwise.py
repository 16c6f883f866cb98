from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "small_depthwise.py"


def load():
    spec = importlib.util.spec_from_file_location("small_depthwise", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value_and_gradients(convolve, x, weight, seed):
    x, weight = paddle.to_tensor(x), paddle.to_tensor(weight)
    x.stop_gradient = weight.stop_gradient = False
    y = convolve(x, weight)
    sent_back = np.random.default_rng(seed).standard_normal(y.shape).astype("float32")
    (y * paddle.to_tensor(sent_back)).sum().backward()
    return [t.numpy() for t in (y, x.grad, weight.grad)]


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride", "padding"),
    [
        (8, (16, 16), (3, 3), (1, 1), (1, 1)),
        (6, (16, 16), (3, 3), (2, 2), (1, 1)),
        (5, (7, 7), (5, 5), (2, 2), (2, 2)),
        (4, (1, 1), (3, 3), (1, 1), (1, 1)),
        (3, (5, 8), (3, 5), (2, 1), (0, 3)),
    ],
)
def test_value_and_gradients_are_those_of_paddles_kernel(channels, size, kernel, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, channels, *size)).astype("float32")
    weight = rng.standard_normal((channels, 1, *kernel)).astype("float32")

    def paddles(x, weight):
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=channels)

    def ours(x, weight):
        return load().depthwise(x, weight, stride, padding)

    wanted = value_and_gradients(paddles, x, weight, seed=1)
    for mine, theirs in zip(value_and_gradients(ours, x, weight, seed=1), wanted):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
import zlib
import numpy as np
import paddle
import small_depthwise

calls = []
original = small_depthwise.depthwise
small_depthwise.depthwise = lambda *given: calls.append(given) or original(*given)
layers = {{
    "depthwise": paddle.nn.Conv2D(4, 4, 3, padding=1, groups=4),
    "dense": paddle.nn.Conv2D(4, 4, 3, padding=1),
    "grouped": paddle.nn.Conv2D(4, 4, 3, padding=1, groups=2),
    "multiplier": paddle.nn.Conv2D(4, 8, 3, padding=1, groups=4),
    "dilated": paddle.nn.Conv2D(4, 4, 3, padding=2, dilation=2, groups=4),
}}
small, large = paddle.randn([2, 4, 6, 6]), paddle.randn([2, 4, 32, 32])
before = {{name: layer(small).numpy() for name, layer in layers.items()}}
small_depthwise.install()
for name, layer in layers.items():
    calls.clear()
    after = layer(small).numpy()
    np.testing.assert_allclose(after, before[name], rtol=1e-5, atol=1e-6)
    print(name, len(calls))
calls.clear()
layers["depthwise"](large)
print("large", len(calls))
"""


def test_only_plain_depthwise_convolutions_of_small_maps_are_replaced():
    program = PROGRAM.format(folder=str(SCRIPT.parent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert counts == {
        "depthwise": "1",
        "dense": "0",
        "grouped": "0",
        "multiplier": "0",
        "dilated": "0",
        "large": "0",
    }


def test_script_name_is_asked_for():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: name a script")
