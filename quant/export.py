"""Saves a network in Paddle's inference format or as ONNX and reads back what was stored."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddle import nn

from . import paddle_format
from .convert import quantized_layers
from .cut_unrounded import cut_unrounded
from .errors import ExportError
from .graph import Graph
from .layout import channels_first
from .lower import Lowered, lower
from .offset_unsigned import offset_unsigned
from .onednn import keep_activations_apart, suit_onednn
from .targets import FLOAT, Target
from .to_onnx import (
    DEFAULT_OPSET,
    build_model,
    check_onnx_path,
    check_operators,
    read_onnx_tensors,
    save_onnx,
)
from .trace import trace


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of PREFIX.pdiparams. `role` is 'weight' for a quantized weight, else 'other'."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    role: str


@dataclass(frozen=True)
class Receipt:
    """What was written, read back from the file. `str()` gives a table.

    Attributes:
        prefix: path of the files without their endings.
        weights_file: the file that holds the tensors.
        tensors: all that it holds.
        model_bytes: size of the file that holds the graph.
        params_bytes: size of `weights_file`; an ONNX file is both.
    """

    prefix: str
    weights_file: str
    tensors: tuple[StoredTensor, ...]
    model_bytes: int
    params_bytes: int

    @property
    def weights(self) -> list[StoredTensor]:
        """The stored tensors that are weights of quantized layers."""
        return [tensor for tensor in self.tensors if tensor.role == "weight"]

    @property
    def int8_weights(self) -> list[StoredTensor]:
        """Those of them that are stored as int8."""
        return [tensor for tensor in self.weights if tensor.dtype == "int8"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prefix": self.prefix,
            "params_bytes": self.params_bytes,
            "model_bytes": self.model_bytes,
            "quantized_weights": len(self.weights),
            "int8_weights": len(self.int8_weights),
            "tensors": [vars(tensor) for tensor in self.tensors],
        }

    def __str__(self) -> str:
        width = max(len(tensor.name) for tensor in self.tensors)
        lines = [f"{'stored tensor':<{width}}  {'dtype':<8} {'shape':<18} {'bytes':>10}"]
        for t in self.tensors:
            shape = "x".join(map(str, t.shape))
            lines.append(f"{t.name:<{width}}  {t.dtype:<8} {shape:<18} {t.bytes:>10,}")
        by_dtype: dict[str, int] = {}
        for t in self.tensors:
            by_dtype[t.dtype] = by_dtype.get(t.dtype, 0) + t.bytes
        parts = ", ".join(f"{n:,} bytes {dtype}" for dtype, n in sorted(by_dtype.items()))
        lines.append(f"{self.weights_file}: {self.params_bytes:,} bytes ({parts})")
        lines.append(
            f"quantized weights stored as int8: {len(self.int8_weights)} of {len(self.weights)}"
        )
        return "\n".join(lines)


def save_quantized_model(net: nn.Layer, prefix: str, input_spec: Sequence[Any] | None) -> Receipt:
    """Writes PREFIX.pdmodel and PREFIX.pdiparams with int8 weights; `net` stays as it is.

    Args:
        net: a quantized network with activation scales (trained or calibrated).
        prefix: path without an ending; missing folders are made.
        input_spec: one paddle.static.InputSpec per input.

    Raises:
        ExportError: the network cannot be traced, or a layer has no int8 form.
        OSError: the files cannot be written; none is left half-written.
    """
    prefix = check_prefix(prefix)
    target, graph, lowered = _lowered(net, input_spec, for_onnx=False)
    cut_unrounded(graph, lowered)
    if "onednn" in target.engines:
        suit_onednn(graph, lowered.unsigned)
    else:
        offset_unsigned(graph, lowered.unsigned)
    paddle_format.save(graph, prefix)
    return _receipt(prefix, set(lowered.weights))


def save_quantized_onnx(
    net: nn.Layer,
    path: str,
    input_spec: Sequence[Any] | None,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> Receipt:
    """Writes an ONNX file with int8 weights and QuantizeLinear/DequantizeLinear pairs.

    Args:
        net: a quantized network with activation scales; it stays as it is.
        path: the file, which ends in .onnx.
        input_spec: one paddle.static.InputSpec per input.
        opset: version of the operator set, 13 to 21.
        metadata: texts to store in the file by name.

    Raises:
        ExportError: the network cannot be traced, an operator has no ONNX form (all are named,
            each with its layer), or a layer has no int8 form. Nothing is written then.
    """
    check_onnx_path(path, opset)
    target, graph, lowered = _lowered(net, input_spec, for_onnx=True)
    model = build_model(graph, lowered, target, opset, metadata or {})
    save_onnx(model, path)
    return _onnx_receipt(path, set(lowered.weights))


def _lowered(
    net: nn.Layer, input_spec: Sequence[Any] | None, for_onnx: bool
) -> tuple[Target, Graph, Lowered]:
    """What both kinds of files are written from."""
    target = next((layer.target for _, layer in quantized_layers(net)), None)
    if target is None:
        raise ExportError("the network holds no quantized layer: call quantize(net) first")
    traced = trace(net, input_spec)
    if for_onnx:
        check_operators(traced)
    lowered = lower(traced, linear_as_convolution=not for_onnx)
    if not lowered.weights:
        raise ExportError("no quantized layer takes part in the network's forward")
    channels_first(traced.graph)
    traced.graph.prune()
    return target, traced.graph, lowered


def save_float_onnx(
    net: nn.Layer,
    path: str,
    input_spec: Sequence[Any] | None,
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Writes a float network as ONNX; returns the bytes of the file.

    Raises: as `save_quantized_onnx`; also for a network that holds quantized layers.
    """
    check_onnx_path(path, opset)
    if any(True for _ in quantized_layers(net)):
        raise ExportError("the network is quantized: save it with QAT.export_onnx")
    traced = trace(net, input_spec)
    check_operators(traced)
    traced.graph.prune()
    save_onnx(build_model(traced.graph, Lowered(), FLOAT, opset, metadata or {}), path)
    return os.path.getsize(path)


def save_float_model(net: nn.Layer, prefix: str, input_spec: Sequence[Any] | None) -> int:
    """Writes a float network in the same format; returns the bytes of PREFIX.pdiparams.

    Raises: as `save_quantized_model`; also for a network that holds quantized layers.
    """
    prefix = check_prefix(prefix)
    if any(True for _ in quantized_layers(net)):
        raise ExportError("the network is quantized: save it with save_quantized_model")
    graph = trace(net, input_spec).graph
    graph.prune()
    keep_activations_apart(graph)
    paddle_format.save(graph, prefix)
    return os.path.getsize(f"{prefix}.pdiparams")


def check_prefix(prefix: Any) -> str:
    """The prefix as a string; raises ExportError for what is no path prefix."""
    if not isinstance(prefix, (str, os.PathLike)) or not os.path.basename(os.fspath(prefix)):
        raise ExportError(
            f"path={prefix!r}: allowed is a file name without an ending, such as 'out/model'"
        )
    prefix = os.fspath(prefix)
    for ending in (".pdmodel", ".pdiparams"):
        if prefix.endswith(ending):
            raise ExportError(f"path={prefix!r}: leave out {ending}, it is added")
    return prefix


def _receipt(prefix: str, weights: set[str]) -> Receipt:
    stored = paddle_format.read_constants(prefix)
    tensors = tuple(
        StoredTensor(
            name,
            str(value.dtype),
            tuple(value.shape),
            value.nbytes,
            "weight" if name in weights else "other",
        )
        for name, value in stored.items()
    )
    receipt = Receipt(
        prefix,
        f"{prefix}.pdiparams",
        tensors,
        os.path.getsize(f"{prefix}.pdmodel"),
        os.path.getsize(f"{prefix}.pdiparams"),
    )
    return _with_int8_weights(receipt, weights)


def _onnx_receipt(path: str, weights: set[str]) -> Receipt:
    tensors = tuple(
        StoredTensor(
            name,
            str(value.dtype),
            tuple(value.shape),
            value.nbytes,
            "weight" if name in weights else "other",
        )
        for name, value in read_onnx_tensors(path).items()
    )
    size = os.path.getsize(path)
    return _with_int8_weights(Receipt(path, path, tensors, size, size), weights)


def _with_int8_weights(receipt: Receipt, weights: set[str]) -> Receipt:
    found = {tensor.name for tensor in receipt.int8_weights}
    if found != weights:
        missing = ", ".join(sorted(weights - found))
        raise ExportError(f"{receipt.weights_file}: not stored as int8: {missing}")
    return receipt
