"""MobileNetV3 (Howard et al., 2019, arXiv:1905.02244), as the SSLD weights have it.

Three details differ from ``paddle.vision.models``: every unit has its expand convolution (the first
one too), the last 1x1 convolution has neither BatchNorm nor bias, and the gate of
squeeze-and-excitation is a hard-sigmoid of slope 0.2 (there 1/6).
"""

from __future__ import annotations

from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import nn

SCALES = (0.35, 0.5, 0.75, 1.0, 1.25)
STEM_CHANNELS = 16
HEAD_CHANNELS = 1280


class Row(NamedTuple):
    """One unit of the network; channel counts are those of scale 1."""

    kernel: int
    expand: int
    out: int
    se: bool
    act: str  # 'relu' or 'hardswish'
    stride: int


LARGE = (
    Row(3, 16, 16, False, "relu", 1),
    Row(3, 64, 24, False, "relu", 2),
    Row(3, 72, 24, False, "relu", 1),
    Row(5, 72, 40, True, "relu", 2),
    Row(5, 120, 40, True, "relu", 1),
    Row(5, 120, 40, True, "relu", 1),
    Row(3, 240, 80, False, "hardswish", 2),
    Row(3, 200, 80, False, "hardswish", 1),
    Row(3, 184, 80, False, "hardswish", 1),
    Row(3, 184, 80, False, "hardswish", 1),
    Row(3, 480, 112, True, "hardswish", 1),
    Row(3, 672, 112, True, "hardswish", 1),
    Row(5, 672, 160, True, "hardswish", 2),
    Row(5, 960, 160, True, "hardswish", 1),
    Row(5, 960, 160, True, "hardswish", 1),
)

SMALL = (
    Row(3, 16, 16, True, "relu", 2),
    Row(3, 72, 24, False, "relu", 2),
    Row(3, 88, 24, False, "relu", 1),
    Row(5, 96, 40, True, "hardswish", 2),
    Row(5, 240, 40, True, "hardswish", 1),
    Row(5, 240, 40, True, "hardswish", 1),
    Row(5, 120, 48, True, "hardswish", 1),
    Row(5, 144, 48, True, "hardswish", 1),
    Row(5, 288, 96, True, "hardswish", 2),
    Row(5, 576, 96, True, "hardswish", 1),
    Row(5, 576, 96, True, "hardswish", 1),
)

ROWS = {"large": LARGE, "small": SMALL}
ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of ``divisor``, never below 90 % of what was asked."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvBN(nn.Layer):
    """Convolution without bias, BatchNorm and, unless ``act`` is None, an activation.

    The padding keeps the size at stride 1 and halves it, rounded up, at stride 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        act: str | None,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2D(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias_attr=False,
        )
        self.bn = nn.BatchNorm2D(out_channels)
        self.act = None if act is None else ACTIVATIONS[act]()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Map ``[N, in_channels, H, W]`` to ``[N, out_channels, H / stride, W / stride]``."""
        x = self.bn(self.conv(x))
        return x if self.act is None else self.act(x)


class Gate(nn.Layer):
    """hard sigmoid(x) = clip(0.2 x + 0.5, 0, 1), a layer so that its result can be quantized."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Values of 0 to 1, of the shape of ``x``."""
        return F.hardsigmoid(x, slope=0.2, offset=0.5)


class SqueezeExcitation(nn.Layer):
    """Scale every channel by a gate in 0 to 1 that is computed from the mean of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.conv1 = nn.Conv2D(channels, channels // 4, 1)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2D(channels // 4, channels, 1)
        self.gate = Gate()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Return ``x`` of shape ``[N, C, H, W]``, scaled."""
        return x * self.gate(self.conv2(self.relu(self.conv1(self.pool(x)))))


class Unit(nn.Layer):
    """Inverted residual: expand 1x1, depthwise, squeeze-and-excitation where asked, linear 1x1."""

    def __init__(self, in_channels: int, row: Row, scale: float) -> None:
        super().__init__()
        expand = make_divisible(scale * row.expand)
        out = make_divisible(scale * row.out)
        self.expand = ConvBN(in_channels, expand, 1, row.act)
        self.depthwise = ConvBN(expand, expand, row.kernel, row.act, row.stride, groups=expand)
        self.se = SqueezeExcitation(expand) if row.se else None
        self.linear = ConvBN(expand, out, 1, act=None)
        self.residual = row.stride == 1 and in_channels == out
        self.out_channels = out

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Map ``[N, in, H, W]`` to ``[N, out, H / stride, W / stride]``."""
        y = self.depthwise(self.expand(x))
        if self.se is not None:
            y = self.se(y)
        y = self.linear(y)
        return x + y if self.residual else y


class MobileNetV3(nn.Layer):
    """The whole network; the units are named ``conv2``, ``conv3``, ..., as in the SSLD weights.

    Args:
        size: ``'large'`` or ``'small'``.
        scale: width multiplier; the published ones are ``SCALES``.
        num_classes: length of the output.
    """

    def __init__(self, size: str = "large", scale: float = 1.0, num_classes: int = 1000) -> None:
        super().__init__()
        rows = ROWS[size]
        channels = make_divisible(scale * STEM_CHANNELS)
        self.conv1 = ConvBN(3, channels, 3, "hardswish", stride=2)
        units = []
        for number, row in enumerate(rows, start=2):
            unit = Unit(channels, row, scale)
            units.append((f"conv{number}", unit))
            channels = unit.out_channels
        self.units = nn.Sequential(*units)
        last = make_divisible(scale * rows[-1].expand)
        self.conv_last = ConvBN(channels, last, 1, "hardswish")
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.last_1x1_conv = nn.Conv2D(last, HEAD_CHANNELS, 1, bias_attr=False)
        self.hardswish = nn.Hardswish()
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(HEAD_CHANNELS, num_classes)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Map images ``[N, 3, H, W]`` float32 to logits ``[N, num_classes]``."""
        x = self.units(self.conv1(x))
        x = self.pool(self.conv_last(x))
        x = self.hardswish(self.last_1x1_conv(x))
        return self.fc(self.flatten(x))
