"""The fake quantizers: each turns a tensor into its b-bit simulation and knows its scale.

Observing (finding the scale) and fake quantizing are two switches, so that calibration can
observe the float network and a frozen network can stop observing:

    observing   fake_quant_enabled
    True        True                 training
    False       True                 frozen, or evaluation (layer.eval() also stops observing)
    True        False                calibration (`calibrating` lets eval() observe too)
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from . import distributed
from .errors import QuantError
from .functional import FakeQuantization, abs_max, codes_numpy, fake_quant
from .grid import Grid, symmetric
from .pact import Pact


class ScaleGroup:
    """Quantizers of tensors that one integer tensor is put together from, as a concat is.

    Each observes its own tensor; all quantize with the largest of their scales.
    """

    def __init__(self, members: list[ObservedQuantizer]) -> None:
        self.members = members

    def scale(self, own: Tensor) -> Tensor:
        """The largest of `own` and of all scales."""
        for member in self.members:
            own = paddle.maximum(own, member.scale)
        return own

    def scale_numpy(self) -> np.ndarray:
        """The largest scale, float32 of shape [1]."""
        return np.max([_vector(member.scale) for member in self.members], axis=0)


class ObservedQuantizer(nn.Layer):
    """A quantizer whose scale is one number, kept in a buffer of shape [1]."""

    scale: Tensor
    group: ScaleGroup | None = None

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.grid = symmetric(bits)
        self.observing = True
        self.fake_quant_enabled = True
        self.calibrating = False
        self._warned = False
        self.register_buffer("scale", paddle.zeros([1], dtype="float32"))

    @property
    def observes_now(self) -> bool:
        """True where the next forward takes statistics."""
        return self.calibrating or (self.observing and self.training)

    def observe(self, x: Tensor, upper: Tensor | None = None) -> None:
        """Takes the statistics of one tensor, cut at `upper` if given.

        All ranks of a job take the largest of theirs.
        """
        with paddle.no_grad():
            largest = abs_max(x)
            if upper is not None:
                largest = paddle.minimum(largest, upper)
            self._update(distributed.max_over_ranks(largest))

    def _update(self, batch_max: Tensor) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets all statistics."""
        self._warned = False
        for buffer in self.buffers():
            buffer.set_value(paddle.zeros_like(buffer))

    def forward(self, x: Tensor, alpha: Tensor | None = None, observe: bool = True) -> Tensor:
        """Observes `x` where it should, and fake quantizes it.

        Args:
            x: any shape.
            alpha: where PACT clips, shape [1]: neither statistics nor scale go beyond it.
            observe: False for a tensor that has been observed already in this step.
        """
        how = self.prepare(x, alpha, observe)
        return x if how is None else fake_quant(x, *how)

    def prepare(
        self, x: Tensor, alpha: Tensor | None = None, observe: bool = True
    ) -> FakeQuantization | None:
        """What `forward` does before it quantizes: observes, and says how; None to leave `x`."""
        observed = self.observes_now
        upper = None if alpha is None else alpha.detach()
        if observed and observe:
            self.observe(x, upper)
        if not self.fake_quant_enabled:
            return None
        if not self._warned:
            self._warn_if_empty()
        scale = self._scale_for(observed)
        if self.group is not None:
            scale = self.group.scale(scale)
        if upper is not None:
            scale = paddle.minimum(scale, upper)
        return FakeQuantization(scale, self.grid, alpha)

    def _warn_if_empty(self) -> None:
        self._warned = True  # or found to need no warning
        if not self.has_scale():
            warnings.warn(
                "a quantizer runs before it saw any data, so its scale is 0 and its output all "
                "zero: train a step, or call calibrate()",
                stacklevel=3,
            )

    def _scale_for(self, observed: bool) -> Tensor:
        """The scale for a tensor that has (or has not) just been observed."""
        return self.scale

    def has_scale(self) -> bool:
        """True once a tensor has been observed (or a checkpoint loaded)."""
        raise NotImplementedError

    def describe_grid(self) -> str:
        """Width and, where it is not the symmetric one, range of the codes, for print(net)."""
        grid = "" if self.grid == symmetric(self.bits) else f", {self.grid}"
        return f"bits={self.bits}{grid}"

    def scale_numpy(self) -> np.ndarray:
        """The scale as float32 of shape [1]."""
        return _vector(self.scale) if self.group is None else self.group.scale_numpy()


class MovingAverageAbsMax(ObservedQuantizer):
    """moving_average_abs_max: state <- rho * state + 1, accum <- rho * accum + max|x|,
    s = accum / state.

    NumPy line: `state = rho * state + 1; accum = rho * accum + abs(x).max(); s = accum / state`.
    Both start at 0, so the first s is the first max|x|. (Paddle's layer starts both at 1.)
    """

    type_name = "moving_average_abs_max"
    state: Tensor
    accum: Tensor

    def __init__(self, bits: int, moving_rate: float) -> None:
        super().__init__(bits)
        self.moving_rate = moving_rate
        self.register_buffer("state", paddle.zeros([1], dtype="float32"))
        self.register_buffer("accum", paddle.zeros([1], dtype="float32"))

    def _update(self, batch_max: Tensor) -> None:
        self.state.set_value(self.state * self.moving_rate + 1.0)
        self.accum.set_value(self.accum * self.moving_rate + batch_max)
        self.scale.set_value(self.accum / self.state)

    def has_scale(self) -> bool:
        """True once there is a scale for evaluation and export."""
        return self.state.item() > 0

    def extra_repr(self) -> str:
        """How this quantizer works, for print(net)."""
        return f"{self.type_name}, {self.describe_grid()}, moving_rate={self.moving_rate}"


class AbsMax(ObservedQuantizer):
    """abs_max of an activation: s = max|x| of the batch in training; the largest s so far is
    kept, and is what evaluation, the report and the export use.

    NumPy lines: training `s = abs(x).max()`, evaluation `s = max(all s so far)`.
    """

    type_name = "abs_max"
    seen: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.register_buffer("seen", paddle.zeros([1], dtype="float32"))
        self._batch_max = self.scale

    def _update(self, batch_max: Tensor) -> None:
        self.scale.set_value(paddle.maximum(self.scale, batch_max))
        self.seen.set_value(paddle.ones_like(self.seen))
        self._batch_max = batch_max

    def _scale_for(self, observed: bool) -> Tensor:
        return self._batch_max if observed else self.scale

    def has_scale(self) -> bool:
        """True once there is a scale for evaluation and export."""
        return self.seen.item() > 0

    def extra_repr(self) -> str:
        """How this quantizer works, for print(net)."""
        return f"{self.type_name}, {self.describe_grid()}"


class ActivationQuantizer(nn.Layer):
    """What a quantized layer does to its input: preprocess (PACT or the user's own), quantize.

    With PACT the scale never exceeds alpha: s <- min(s, alpha). The moving average may lag
    behind an alpha that shrinks, and a clip at alpha is no operation of the exported file; with
    s <= alpha the quantizer's own saturation is that clip, so nothing is lost in the export.
    """

    def __init__(self, quantizer: nn.Layer, preprocess: nn.Layer | None = None) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.quantizer = quantizer

    @property
    def bits(self) -> int:
        """Width of a code."""
        return int(getattr(self.quantizer, "bits", 8))

    def is_builtin(self) -> bool:
        """False for a quantizer of the user's own."""
        return isinstance(self.quantizer, ObservedQuantizer)

    @property
    def grid(self) -> Grid:
        """The codes; those of a quantizer of the user's own are taken to be symmetric."""
        if isinstance(self.quantizer, ObservedQuantizer):
            return self.quantizer.grid
        return symmetric(self.bits)

    def forward(self, x: Tensor, observe: bool = True) -> Tensor:
        """The fake-quantized tensor; `observe` is False where `x` has been observed already."""
        quantizer, preprocess = self.quantizer, self.preprocess
        if not getattr(quantizer, "fake_quant_enabled", True):
            preprocess = None
        if isinstance(quantizer, ObservedQuantizer) and isinstance(preprocess, Pact):
            return quantizer(x, preprocess.alpha_for(x), observe)
        if preprocess is not None:
            x = preprocess(x)
        return quantizer(x, observe=observe) if self.is_builtin() else quantizer(x)

    def can_prepare(self) -> bool:
        """True where nothing but `fake_quant` would change the tensor."""
        quantizer, preprocess = self.quantizer, self.preprocess
        return (
            isinstance(quantizer, ObservedQuantizer)
            and quantizer.fake_quant_enabled
            and (preprocess is None or isinstance(preprocess, Pact))
        )

    def prepare(self, x: Tensor, observe: bool = True) -> FakeQuantization:
        """How `forward` quantizes `x`, which is observed; only where `can_prepare`."""
        alpha = self.preprocess.alpha_for(x) if isinstance(self.preprocess, Pact) else None
        how = self.quantizer.prepare(x, alpha, observe)
        assert how is not None
        return how

    def fresh(self) -> ActivationQuantizer:
        """Another one, for another tensor: the same quantizer without a scale, and no PACT."""
        if not isinstance(self.quantizer, ObservedQuantizer):
            return ActivationQuantizer(type(self.quantizer)())  # type: ignore[call-arg]
        quantizer = copy.deepcopy(self.quantizer)
        quantizer.reset()
        return ActivationQuantizer(quantizer)

    def _upper_bound(self) -> Tensor | None:
        return self.preprocess.bound() if isinstance(self.preprocess, Pact) else None

    def has_scale(self) -> bool:
        """True once there is a scale for evaluation and export."""
        if isinstance(self.quantizer, ObservedQuantizer):
            return self.quantizer.has_scale()
        return _own_scale(self.quantizer) is not None

    def scale_numpy(self) -> np.ndarray:
        """The scale that evaluation and export use, float32 of shape [1].

        A quantizer of the user's own gives its scale as an attribute or method `scale`.
        """
        if isinstance(self.quantizer, ObservedQuantizer):
            upper = self._upper_bound()
            scale = self.quantizer.scale_numpy()
            return scale if upper is None else np.minimum(scale, upper.numpy())
        own = _own_scale(self.quantizer)
        if own is None or own.size != 1:
            kind = type(self.quantizer).__name__
            raise QuantError(f"{kind} gives no `scale` (one number), which the export needs")
        return own

    def extra_repr(self) -> str:
        """How this quantizer works, for print(net)."""
        return "" if self.is_builtin() else f"{type(self.quantizer).__name__}"


class WeightAbsMax(nn.Layer):
    """abs_max (s = max|w|) or channel_wise_abs_max (s per output channel) of a weight.

    The scale is that of the current weight at each step, so there is nothing to keep.
    NumPy line, axis being the output channel: `s = abs(w).max(axis=all but axis)`.
    """

    def __init__(self, bits: int, axis: int | None) -> None:
        super().__init__()
        self.bits = bits
        self.axis = axis
        self.fake_quant_enabled = True

    @property
    def type_name(self) -> str:
        """The name of this type in the config."""
        return "abs_max" if self.axis is None else "channel_wise_abs_max"

    def scale_of(self, weight: Tensor) -> Tensor:
        """Scale of a weight, broadcastable to it."""
        return abs_max(weight, self.axis)

    def forward(self, weight: Tensor) -> Tensor:
        """The fake-quantized tensor."""
        if not self.fake_quant_enabled:
            return weight
        return fake_quant(weight, self.scale_of(weight), symmetric(self.bits))

    def extra_repr(self) -> str:
        """How this quantizer works, for print(net)."""
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"{self.type_name}, bits={self.bits}{axis}"


class WeightQuantizer(nn.Layer):
    """What a quantized layer does to its weight: preprocess (PACT or the user's own), quantize.

    Args:
        quantizer: WeightAbsMax, MovingAverageAbsMax, or a layer of the user's own.
        channel_axis: axis of the output channels: 0 for Conv2D, 1 for Linear ([in, out]).
        preprocess: what comes before the quantizer, if anything.
        onto_int8_channels: rounds what the quantizer gives once more, onto 8 bits with a scale per
            output channel, as an engine does that knows nothing else (`Target`).
    """

    def __init__(
        self,
        quantizer: nn.Layer,
        channel_axis: int,
        preprocess: nn.Layer | None = None,
        onto_int8_channels: bool = False,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.quantizer = quantizer
        self.channel_axis = channel_axis
        is_there = isinstance(quantizer, WeightAbsMax) and (
            (quantizer.axis, quantizer.bits) == (channel_axis, 8)
        )
        self.onto_int8_channels = onto_int8_channels and not is_there

    @property
    def bits(self) -> int:
        """Width of a code."""
        return int(getattr(self.quantizer, "bits", 8))

    @property
    def code_bits(self) -> int:
        """Width of the codes of `codes_and_scales`."""
        return 8 if self.onto_int8_channels else self.bits

    def is_per_tensor(self) -> bool:
        """True where one scale serves the whole weight."""
        if self.onto_int8_channels:
            return False
        quantizer = self.quantizer
        return isinstance(quantizer, ObservedQuantizer) or getattr(quantizer, "axis", 0) is None

    def forward(self, weight: Tensor) -> Tensor:
        """The fake-quantized tensor."""
        if self.preprocess is not None and getattr(self.quantizer, "fake_quant_enabled", True):
            weight = self.preprocess(weight)
        weight = self.quantizer(weight)
        if self.onto_int8_channels and getattr(self.quantizer, "fake_quant_enabled", True):
            weight = fake_quant(weight, abs_max(weight, self.channel_axis), symmetric(8))
        return weight

    @paddle.no_grad()
    def codes_and_scales(self, weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Integer codes of the weight and one float32 scale per output channel.

        The simulated weight is codes * scale / r, r = 2^(code_bits-1) - 1.

        Raises:
            QuantError: a quantizer of the user's own whose output is on no int8 grid.
        """
        if self.preprocess is not None:
            weight = self.preprocess(weight)
        quantizer = self.quantizer
        axis = self.channel_axis
        shape = [1] * len(weight.shape)
        shape[axis] = weight.shape[axis]
        if self.onto_int8_channels:
            values = quantizer(weight)
            scale = abs_max(values, axis).numpy().reshape(shape)
            return codes_numpy(values.numpy(), scale, 8), scale.reshape([-1])
        if isinstance(quantizer, WeightAbsMax):
            scale = quantizer.scale_of(weight).numpy()
        elif isinstance(quantizer, ObservedQuantizer):
            scale = quantizer.scale.numpy() if quantizer.has_scale() else abs_max(weight).numpy()
        else:
            return self._own_codes(quantizer(weight).numpy(), shape)
        scale = np.broadcast_to(scale.reshape(shape if scale.size > 1 else [1] * len(shape)), shape)
        return codes_numpy(weight.numpy(), scale, self.bits), scale.reshape([-1]).copy()

    def _own_codes(self, values: np.ndarray, shape: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Codes of an already quantized weight whose grid is only known by its values."""
        r = float(2 ** (self.bits - 1) - 1)
        axes = tuple(i for i in range(values.ndim) if i != self.channel_axis)
        given = _own_scale(self.quantizer)
        if given is None:
            candidates = [np.abs(values).max(axis=axes, keepdims=True), np.abs(values).max()]
        else:
            candidates = [given.reshape(shape) if given.size > 1 else given.reshape([])]
        for candidate in candidates:
            scale = np.broadcast_to(np.asarray(candidate, np.float32), shape)
            codes = np.where(scale > 0, values * r / np.where(scale > 0, scale, 1), 0)
            if np.abs(codes - np.rint(codes)).max() < 1e-3 and np.abs(codes).max() <= r + 1e-3:
                return np.rint(codes).astype(np.int8), scale.reshape([-1]).copy()
        raise QuantError(
            f"the output of weight_quantize={type(self.quantizer).__name__} is on no "
            f"{self.bits}-bit grid of 2^{self.bits} - 1 steps; give the class an attribute `scale`"
        )


def _own_scale(quantizer: nn.Layer) -> np.ndarray | None:
    """What a quantizer of the user's own says of its scale (attribute or method), as a vector."""
    scale = getattr(quantizer, "scale", None)
    scale = scale() if callable(scale) else scale
    if scale is None:
        return None
    values = scale.numpy() if hasattr(scale, "numpy") else scale
    return np.asarray(values, dtype=np.float32).reshape([-1])


def _vector(scale: Tensor) -> np.ndarray:
    return np.asarray(scale.numpy(), dtype=np.float32).reshape([1])


def make(factory: Any, default: Any) -> Any:
    """An instance of the user's own class, or the built-in layer where there is none."""
    return default if factory is None else factory()
