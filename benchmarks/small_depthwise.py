"""Run a script with a fast kernel for depthwise convolutions of small feature maps.

    python benchmarks/small_depthwise.py train.py --model=mobilenet_v1_x0_25 ...

Paddle's CPU kernel computes a depthwise convolution as one tiny matrix product per image and
channel. On maps of a few pixels the calls cost more than the arithmetic: 91 % of a training step of
MobileNetV1 x0.25 at 32x32. For such maps the whole layer is one batched product instead,

    y[c] = x[c] M[c],    x[c] of shape [N, H W],    M[c] of shape [H W, H' W'],

where M[c] holds the kernel of channel c at each place of the output. It is the same sum in another
order, so results agree within float rounding, and the gradient is that of the products. Only eager
CPU execution is affected: what is traced and exported is Paddle's own operator.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
import zlib  # noqa: F401  (before paddle: see quant/__init__.py)
from pathlib import Path
from typing import Any

import numpy as np

# On larger maps Paddle's kernel is the faster one, and M would be large.
MOST_PIXELS = 256


def main() -> None:
    """Run the script that the first argument names, with the rest as its arguments."""
    if len(sys.argv) < 2:
        sys.exit("error: name a script, as in: small_depthwise.py train.py --model=mobilenet_v1")
    from engine.runtime import prepare_process

    prepare_process()
    install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


def install() -> None:
    """Let ``paddle.nn.functional.conv2d`` of this process use the batched product."""
    from paddle.nn.functional import conv

    conv._C_ops = _Operators(conv._C_ops)


class _Operators:
    """Paddle's operators, but for one."""

    def __init__(self, operators: Any) -> None:
        self._operators = operators
        self._original = operators.depthwise_conv2d

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operators, name)

    def depthwise_conv2d(self, x: Any, weight: Any, *arguments: Any) -> Any:
        """Arguments are those of Paddle's operator: x [N, C, H, W], weight [C, 1, K, L], ..."""
        strides, padding, algorithm, groups, dilations, layout = arguments[:6]
        height, width = x.shape[2:]
        if (
            x.place.is_cpu_place()
            and layout == "NCHW"
            and algorithm == "EXPLICIT"
            and len(padding) == 2
            and height * width <= MOST_PIXELS
            and weight.shape[0] == x.shape[1]
            and list(dilations) == [1, 1]
        ):
            return depthwise(x, weight, tuple(strides), tuple(padding))
        return self._original(x, weight, *arguments)


def depthwise(x: Any, weight: Any, strides: tuple[int, ...], padding: tuple[int, ...]) -> Any:
    """Depthwise convolution without bias as one batched matrix product.

    Args:
        x: float32 [N, C, H, W].
        weight: float32 [C, 1, K, L].
        strides: vertical and horizontal.
        padding: rows of zeros above and below, columns of zeros left and right.

    Returns:
        float32 [N, C, H', W'].
    """
    import paddle

    images, channels, height, width = x.shape
    places, size = _places(height, width, *weight.shape[2:], *strides, *padding)
    # [C, K L] x [K L, H W H' W'], the second one zeros and ones
    matrices = paddle.matmul(weight.reshape([channels, -1]), places)
    matrices = matrices.reshape([channels, height * width, size[0] * size[1]])
    columns = x.reshape([images, channels, -1]).transpose([1, 0, 2])
    product = paddle.bmm(columns, matrices)
    return product.transpose([1, 0, 2]).reshape([images, channels, *size])


@functools.cache
def _places(
    height: int, width: int, rows: int, columns: int, down: int, right: int, top: int, left: int
) -> tuple[Any, tuple[int, int]]:
    """Which kernel element takes which input pixel to which output pixel, and the output's size."""
    import paddle

    out_height = (height + 2 * top - rows) // down + 1
    out_width = (width + 2 * left - columns) // right + 1
    places = np.zeros([rows, columns, height, width, out_height, out_width], np.float32)
    for i, j, k, m in np.ndindex(rows, columns, out_height, out_width):
        row, column = k * down - top + i, m * right - left + j
        if 0 <= row < height and 0 <= column < width:
            places[i, j, row, column, k, m] = 1
    return paddle.to_tensor(places.reshape([rows * columns, -1])), (out_height, out_width)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
