"""What an int8 file of Paddle holds, whoever made it: tensors, weights, scales, codes.

Four ways of storing a quantized weight are known:

=============================  ==============================================================
int8                           int8 constant -> dequantize_linear (ours; Paddle's onnx_format)
integers as float32            float32 constant of integers -> dequantize_linear (the `convert` of
                               paddle.quantization) or fake_dequantize_*
quantized at run time          float32 constant -> quantize_linear, or fake_quantize_dequantize_*
float32                        read as it is
=============================  ==============================================================
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import paddle_format
from .errors import ExportError
from .graph import Graph, Op

INT8, AS_FLOAT, AT_RUN_TIME, FLOAT = (
    "int8",
    "integers as float32",
    "quantized at run time",
    "float32",
)
_WEIGHT_SLOTS = {
    "conv2d": ("Input", "Filter"),
    "conv2d_transpose": ("Input", "Filter"),
    "depthwise_conv2d": ("Input", "Filter"),
    "depthwise_conv2d_transpose": ("Input", "Filter"),
    "matmul_v2": ("X", "Y"),
    "mul": ("X", "Y"),
}
_MOVES = ("reshape2", "scale", "squeeze2", "transpose2", "unsqueeze2")
_INT8_LOW, _INT8_HIGH = -128, 127
# Scales beyond these are no value range of an image network.
_TINY, _HUGE = 1e-6, 1e6


@dataclass(frozen=True)
class WeightContent:
    """The weight of one convolution or matrix product.

    Attributes:
        name, op: the stored tensor, and the operator that multiplies with it.
        storage: one of the four ways above.
        dtype, shape, bytes: as stored.
        scales: how many scales it has: 1 for the whole tensor, else one per channel; 0: none.
        largest_scale: the largest of them; None where there is none.
        codes_used: how many different integers occur; None where none are stored.
        loose_channels: channels whose largest |code| is below 64, so that a bit is never used.
        quantized_input: whether the other operand is quantized too.
        problems: what cannot be right, a phrase each.
    """

    name: str
    op: str
    storage: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    scales: int = 0
    largest_scale: float | None = None
    codes_used: int | None = None
    loose_channels: int = 0
    quantized_input: bool = False
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActivationContent:
    """The quantizer of one tensor: its scale (the value of the largest code), and problems."""

    tensor: str
    scale: float
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileContent:
    """What PREFIX.pdmodel and PREFIX.pdiparams hold.

    Attributes:
        prefix: the file.
        bytes_by_dtype: of all stored tensors.
        params_bytes: size of PREFIX.pdiparams.
        tensors: name, dtype, shape and bytes of each.
        weights: those of convolutions and matrix products.
        activations: the quantized tensors that are no weights.
    """

    prefix: str
    bytes_by_dtype: dict[str, int]
    params_bytes: int
    tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]
    weights: tuple[WeightContent, ...]
    activations: tuple[ActivationContent, ...]
    failures: tuple[str, ...] = field(default=())

    @property
    def counts(self) -> dict[str, int]:
        """How many weights are stored in which way."""
        ways = [weight.storage for weight in self.weights]
        return {way: ways.count(way) for way in (INT8, AS_FLOAT, AT_RUN_TIME, FLOAT)}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prefix": self.prefix,
            "params_bytes": self.params_bytes,
            "bytes_by_dtype": self.bytes_by_dtype,
            "weights_by_storage": self.counts,
            "failures": list(self.failures),
            "weights": [vars(weight) for weight in self.weights],
            "activations": [vars(item) for item in self.activations],
            "tensors": [
                {"name": name, "dtype": dtype, "shape": shape, "bytes": size}
                for name, dtype, shape, size in self.tensors
            ],
        }

    def __str__(self) -> str:
        parts = ", ".join(f"{n:,} {dtype}" for dtype, n in sorted(self.bytes_by_dtype.items()))
        lines = [f"{self.prefix}.pdiparams: {self.params_bytes:,} bytes ({parts})"]
        if self.weights:
            lines += self._table()
        counts = self.counts
        said = ", ".join(f"{n} {way}" for way, n in counts.items() if n)
        lines.append(f"weights of convolutions and matrix products: {said or 'none'}")
        if self.activations:
            scales = [item.scale for item in self.activations]
            lines.append(
                f"quantized activations: {len(scales)}, scales {np.min(scales):.4g} to "
                f"{np.max(scales):.4g}"
            )
        return "\n".join(lines)

    def _table(self) -> list[str]:
        width = max(len("weight"), *(len(weight.name) for weight in self.weights))
        lines = [
            f"{'weight':<{width}}  {'stored as':<21} {'shape':<16} {'bytes':>10} {'scales':>9} "
            f"{'largest':>9} {'codes':>5} {'input':>6}"
        ]
        for w in self.weights:
            kind = {0: "none", 1: "tensor"}.get(w.scales, f"{w.scales} ch.")
            scale = "-" if w.largest_scale is None else f"{w.largest_scale:.3g}"
            codes = "-" if w.codes_used is None else w.codes_used
            loose = f"  {w.loose_channels} channels below code 64" if w.loose_channels else ""
            lines.append(
                f"{w.name:<{width}}  {w.storage:<21} {'x'.join(map(str, w.shape)):<16} "
                f"{w.bytes:>10,} {kind:>9} {scale:>9} {codes:>5} "
                f"{'int8' if w.quantized_input else 'float':>6}{loose}"
            )
        return lines


def inspect_file(prefix: str) -> FileContent:
    """Reads PREFIX.pdmodel and PREFIX.pdiparams; nothing is run.

    Raises:
        ExportError: a file is missing, is no Paddle model, or is damaged.
    """
    prefix = os.fspath(prefix)
    for suffix in (".pdmodel", ".pdiparams"):
        if not os.path.isfile(prefix + suffix):
            raise ExportError(f"{prefix}{suffix} does not exist")
    graph = paddle_format.read_graph(prefix)
    producers = {name: op for op in graph.ops() for name in op.all_outputs()}
    weights: dict[tuple[str, str], WeightContent] = {}
    for op in graph.ops():
        found = _weight(graph, producers, op)
        if found is not None:
            weights.setdefault((found.name, found.op), found)
    activations = tuple(_activations(graph))
    by_dtype: dict[str, int] = {}
    for value in graph.constants.values():
        by_dtype[str(value.dtype)] = by_dtype.get(str(value.dtype), 0) + value.nbytes
    return FileContent(
        prefix=prefix,
        bytes_by_dtype=by_dtype,
        params_bytes=os.path.getsize(f"{prefix}.pdiparams"),
        tensors=tuple(
            (name, str(value.dtype), tuple(value.shape), value.nbytes)
            for name, value in graph.constants.items()
        ),
        weights=tuple(weights.values()),
        activations=activations,
        failures=tuple(_failures(tuple(weights.values()), activations)),
    )


def _failures(
    weights: tuple[WeightContent, ...], activations: tuple[ActivationContent, ...]
) -> list[str]:
    lines = [f"{w.name}: {problem}" for w in weights for problem in w.problems]
    lines += [f"{a.tensor}: {problem}" for a in activations for problem in a.problems]
    if not any(weight.storage == INT8 for weight in weights):
        lines.append("not an int8 model: no weight is stored as int8")
    for way in (AS_FLOAT, AT_RUN_TIME):
        count = sum(weight.storage == way for weight in weights)
        if count:
            lines.append(f"{count} quantized weights are stored as float32 ({way})")
    return lines


def _weight(graph: Graph, producers: dict[str, Op], op: Op) -> WeightContent | None:
    slots = _WEIGHT_SLOTS.get(op.type)
    if slots is None or not op.inputs(slots[1]):
        return None
    name, via = op.input(slots[1]), None
    while name not in graph.constants:
        maker = producers.get(name)
        if maker is None:
            return None
        if _is_quantizer(maker):
            via = via or maker
        elif maker.type not in _MOVES:
            return None
        name = maker.input("X")
    value = graph.constants[name]
    last = next((o for o in graph.consumers(name) if o.inputs("X") == [name]), None)
    storage = FLOAT if via is None or last is None else _storage(value, last)
    codes = value if storage in (INT8, AS_FLOAT) else None
    scales = np.zeros(0) if via is None else _scales(graph, via)
    axis = int(via.attr("quant_axis", 0) or 0) if via is not None else 0
    return WeightContent(
        name=name,
        op=op.type,
        storage=storage,
        dtype=str(value.dtype),
        shape=tuple(value.shape),
        bytes=value.nbytes,
        scales=scales.size,
        largest_scale=float(scales.max()) if scales.size else None,
        codes_used=None if codes is None else int(np.unique(codes).size),
        loose_channels=0 if codes is None else _loose_channels(codes, scales.size, axis),
        quantized_input=_is_quantized(producers, op.input(slots[0])),
        problems=tuple(_weight_problems(codes, scales, axis)),
    )


def _is_quantizer(op: Op) -> bool:
    return op.type in ("quantize_linear", "dequantize_linear") or (
        op.type.startswith("fake_") and "quantize" in op.type
    )


def _storage(value: np.ndarray, reader: Op) -> str:
    if value.dtype == np.int8:
        return INT8
    only_dequantizes = reader.type == "dequantize_linear" or (
        "dequantize" in reader.type and "quantize_dequantize" not in reader.type
    )
    return AS_FLOAT if only_dequantizes else AT_RUN_TIME


def _scales(graph: Graph, op: Op) -> np.ndarray:
    for slot in ("Scale", "Scales", "InScale"):
        names = op.inputs(slot)
        if names and names[0] in graph.constants:
            return graph.constants[names[0]].astype(np.float64).ravel()
    return np.zeros(0)


def _by_channel(codes: np.ndarray, scales: int, axis: int) -> np.ndarray | None:
    """The largest |code| of each channel; None where the scales are not those of that axis."""
    if not 0 <= axis < codes.ndim or codes.shape[axis] != scales or not codes.size:
        return None
    return np.abs(np.moveaxis(codes, axis, 0).reshape(scales, -1).astype(np.int64)).max(axis=1)


def _loose_channels(codes: np.ndarray, scales: int, axis: int) -> int:
    largest = _by_channel(codes, scales, axis)
    return 0 if largest is None else int(np.sum((largest > 0) & (largest < 64)))


def _weight_problems(codes: np.ndarray | None, scales: np.ndarray, axis: int) -> list[str]:
    problems = []
    broken = int(np.sum(~np.isfinite(scales)))
    if broken:
        problems.append(f"{broken} of {scales.size} scales are NaN or Inf")
    if (scales < 0).any():
        problems.append(f"{int(np.sum(scales < 0))} of {scales.size} scales are negative")
    if (scales > _HUGE).any():
        problems.append(f"a scale of {scales.max():.3g}")
    if codes is None:
        return problems
    if codes.dtype != np.int8 and not (np.isfinite(codes).all() and (codes == codes.round()).all()):
        return [*problems, "codes that are no integers"]
    beyond = int(np.sum((codes < _INT8_LOW) | (codes > _INT8_HIGH)))
    if beyond:
        problems.append(f"{beyond} codes lie outside -128 to 127")
    largest = _by_channel(codes, scales.size, axis)
    if largest is not None and (dead := int(np.sum((scales == 0) & (largest > 0)))):
        problems.append(f"{dead} channels have codes and scale 0")
    return problems


def _activations(graph: Graph) -> list[ActivationContent]:
    found = []
    for op in graph.ops():
        if not _is_quantizer(op) or op.type == "dequantize_linear" or "dequantize_max" in op.type:
            continue
        x = op.input("X")
        scales = _scales(graph, op)
        if x in graph.constants or not scales.size:
            continue
        scale, problems = float(scales[0]), []
        if not np.isfinite(scale):
            problems.append(f"its activation scale is {scale}")
        elif scale <= 0:
            problems.append(f"its activation scale is {scale:g}, so nothing passes")
        elif not _TINY <= scale <= _HUGE:
            problems.append(f"its activation scale is {scale:.3g}")
        found.append(ActivationContent(x, scale, tuple(problems)))
    return found


def _is_quantized(producers: dict[str, Op], name: str) -> bool:
    op = producers.get(name)
    while op is not None and op.type in (*_MOVES, "flatten_contiguous_range"):
        op = producers.get(op.input("X"))
    return op is not None and _is_quantizer(op)
