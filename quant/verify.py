"""Is the exported file the network? Both run on the same inputs, and the differences are measured.

Rounding makes exactness impossible to the last digit: a float error of 1e-7 moves some value
across a rounding step, and each such flip spreads. How far is the *float floor*, measured here as
the network against itself with a relative error of one unit in the last place (2^-23, random
sign) put on the output of every layer.

Then each layer of the file is held against its layer of the network; see layerwise.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from .calibration import as_inputs, each
from .convert import named_layers, quantized_layers
from .cpu import has_int8_products
from .errors import ExportError, VerifyError
from .layerwise import LayerReport, LayerRow, compare_layers, format_layers, why
from .modes import evaluating
from .onnx_predictor import OnnxPredictor
from .predictor import ENGINES, Predictor
from .recorder import ULP
from .targets import Target

# What an engine may differ by: the larger of a multiple of the float floor and a share of the
# range (max - min) of the network's outputs. The share is there since a floor measured on a few
# inputs is that of the flips that happened: a single other one can exceed it many times over.
FLOORS = 3.0
SHARE_OF_RANGE = {
    "paddle": 0.002,
    "onednn": 0.02,
    "onnx": 0.002,
    "onnxruntime": 0.002,
    "openvino": 0.02,
}
# The bound where the network was trained for the engine's own arithmetic.
SHARE_ON_TARGET = 0.003
NAMES = {
    "paddle": "plain CPU",
    "onednn": "oneDNN int8",
    "onnx": "ONNX as stored",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
_NOISE_RUNS = 5
_NOISE_RUNS_OF_LAYERS = 3  # a layer has many values, so its floor scatters less


@dataclass(frozen=True)
class Difference:
    """Of one output: mean and max of |a - b|, and the share of rows with the same Top1."""

    mean_abs: float
    max_abs: float
    agreement: float


@dataclass(frozen=True)
class Verdict:
    """The figures of a comparison. `passed` tells whether the file is the network.

    Attributes:
        prefix: the exported file.
        num_inputs: how many samples were compared.
        output_range: per output, max - min of the network's values.
        floor: per output, the network against itself with noise of one ulp (largest of 5 runs).
        engines: per engine and output, the file against the network.
        failures: one line for each bound that does not hold; empty when all hold.
        notes: what is shown and not judged, and why.
        bounds: per engine that was judged, the allowed mean difference as a share of the range.
        layers: one row per call of a quantized layer, in the order in which they run.
        layers_engine: what ran the file for these rows; None where there are none.
        layers_inputs: on how many samples.
    """

    prefix: str
    num_inputs: int
    output_range: tuple[float, ...]
    floor: tuple[Difference, ...]
    engines: dict[str, tuple[Difference, ...]]
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()
    bounds: dict[str, float] = field(default_factory=dict)
    layers: tuple[LayerRow, ...] = ()
    layers_engine: str | None = None
    layers_inputs: int = 0

    @property
    def first_departing(self) -> LayerRow | None:
        """The first layer, in the order of running, that is not the network's."""
        return next((row for row in self.layers if row.departs), None)

    @property
    def passed(self) -> bool:
        """True where every bound holds."""
        return not self.failures

    def to_dict(self, layers: bool = False) -> dict[str, Any]:
        """For JSON: of several outputs, the engine's figures are those of the worst one.

        Args:
            layers: also the row of each layer.
        """
        first = self.first_departing
        values: dict[str, Any] = {
            "prefix": self.prefix,
            "passed": self.passed,
            "num_inputs": self.num_inputs,
            "output_range": list(self.output_range),
            "floor": self._worst(self.floor),
            "engines": {
                name: self._worst(rows) if rows else None for name, rows in self.engines.items()
            },
            "failures": list(self.failures),
            "notes": list(self.notes),
            "first_departing": None if first is None else first.title,
        }
        if layers:
            values["layers_engine"] = self.layers_engine
            values["layers_inputs"] = self.layers_inputs
            values["layers"] = [row.to_dict() for row in self.layers]
        return values

    def _worst(self, rows: tuple[Difference, ...]) -> dict[str, float]:
        shares = [d.mean_abs / max(r, 1e-30) for d, r in zip(rows, self.output_range)]
        at = int(np.argmax(shares))
        worst = vars(rows[at]).copy()
        worst["mean_share_of_range"] = shares[at]
        worst["max_share_of_range"] = rows[at].max_abs / max(self.output_range[at], 1e-30)
        worst["agreement"] = min(d.agreement for d in rows)
        return worst

    def __str__(self) -> str:
        lines = [
            f"{'against the network':<22} {'mean |d|':>11} {'of range':>9} {'max |d|':>11} "
            f"{'of range':>9} {'same Top1':>10}   ({self.num_inputs} inputs)"
        ]
        table = [("float floor (1 ulp)", self.floor)]
        table += [(f"file, {NAMES[k]}", rows) for k, rows in self.engines.items() if rows]
        for name, rows in table:
            for i, (d, span) in enumerate(zip(rows, self.output_range)):
                label = name if len(rows) == 1 else f"{name} [{i}]"
                span = max(span, 1e-30)
                lines.append(
                    f"{label:<22} {d.mean_abs:>11.3g} {d.mean_abs / span:>9.3%} "
                    f"{d.max_abs:>11.3g} {d.max_abs / span:>9.3%} {d.agreement:>10.2%}"
                )
        if self.layers:
            lines.append(self.layer_table())
        lines.extend(f"note: {line}" for line in self.notes)
        lines.extend(f"FAILED: {line}" for line in self.failures)
        if self.passed:
            lines.append(self._conclusion())
        return "\n".join(lines)

    def layer_table(self, every: bool = False) -> str:
        """The rows of the layers that differ most, or of all of them in the order of running."""
        name = NAMES.get(self.layers_engine or "", "no engine")
        return format_layers(self.layers, f"{name}, {self.layers_inputs} inputs", every)

    def _conclusion(self) -> str:
        if not self.bounds:
            return "not verified: no engine that ran computes what the network was quantized for"
        bounds = ", ".join(
            f"{share:.1%} of the range on {NAMES[name]}" for name, share in self.bounds.items()
        )
        return (
            f"verified: the file is the network, within {FLOORS:g} float floors or {bounds}, "
            "whichever is larger"
        )


def verify(
    net: nn.Layer, prefix: str, batches: Iterable[Any], engines: Sequence[str] | None = None
) -> Verdict:
    """Compares an exported file with the fake-quant network on `batches`.

    Args:
        net: the network that was exported.
        prefix: the file: PREFIX of PREFIX.pdmodel, or a path that ends in .onnx.
        batches: inputs as for `calibrate`; a hundred samples or more make a fair test.
        engines: of a Paddle file 'paddle' (plain CPU) and 'onednn' (oneDNN int8); of an ONNX file
            'onnx' (the operators as stored), 'onnxruntime' and 'openvino'. None takes both of the
            former, and of the latter the first two, or what the target names where these are not
            for it.

    Raises:
        VerifyError: there is no batch, or the file is missing.
    """
    prefix = os.fspath(prefix)
    is_onnx = prefix.endswith(".onnx")
    inputs = [[t.numpy() for t in as_inputs(net, batch)] for batch in each(batches)]
    if not inputs:
        raise VerifyError("verify got no batch: at least one is needed")
    expected = _run(net, inputs)
    span = tuple(float(np.ptp(values)) if values.size else 0.0 for values in expected)
    floor = _floor(net, inputs, expected)
    failures: list[str] = []
    notes: list[str] = []
    results: dict[str, tuple[Difference, ...]] = {}
    target = next(layer.target for _, layer in quantized_layers(net))
    if engines is None:
        engines = _engines(target) if is_onnx else ENGINES
    shares = {engine: _share(engine, target) for engine in engines}
    for engine in engines:
        try:
            predictor = (OnnxPredictor if is_onnx else Predictor)(prefix, engine)
            found = _joined([predictor(batch) for batch in inputs])
        except VerifyError as error:
            if "does not exist" in str(error):
                raise
            if _why_not_judged(net, engine, target) is None:
                failures.append(str(error))
            else:
                notes.append(f"{error}; not judged")
            results[engine] = ()
            continue
        results[engine], lines = _judge(engine, expected, found, span, floor, shares[engine])
        reason = _why_not_judged(net, engine, target)
        if reason is None:
            failures += lines
        else:
            notes.append(f"{reason}; its row is shown, not judged")
    judged = {e: shares[e] for e in engines if _why_not_judged(net, e, target) is None}
    layers = LayerReport("")
    if any(results.values()):
        engine = "onnx" if is_onnx else next(iter(judged), engines[0])
        # Where only an engine that optimizes an ONNX file is judged, its layers are, alone.
        share = judged.get(engine, float("inf") if is_onnx and judged else None)
        layers = _layers(net, prefix, inputs, engine, share)
        if not failures:
            layers = layers.of_wrong_layers()
        notes += layers.notes
    if layers.first_departing is not None:
        failures.append(why(layers.first_departing, NAMES[layers.engine]))
    return Verdict(
        prefix=prefix,
        num_inputs=sum(batch[0].shape[0] if batch[0].ndim else 1 for batch in inputs),
        output_range=span,
        floor=floor,
        engines=results,
        failures=tuple(failures),
        notes=tuple(notes),
        bounds=judged,
        layers=layers.rows,
        layers_engine=layers.engine if layers.rows else None,
        layers_inputs=layers.num_inputs,
    )


def _layers(
    net: nn.Layer,
    prefix: str,
    inputs: list[list[np.ndarray]],
    engine: str,
    share: float | None,
) -> LayerReport:
    noisy = [partial(_one_ulp_noise, net, seed) for seed in range(_NOISE_RUNS_OF_LAYERS)]
    try:
        return compare_layers(net, prefix, inputs, engine, share, noisy)
    except (ExportError, VerifyError) as error:
        return LayerReport(engine, notes=(f"not compared layer by layer: {error}",))


def _engines(target: Target) -> tuple[str, ...]:
    stored = ("onnx", "onnxruntime")
    return stored if set(stored) & set(target.onnx_engines) else target.onnx_engines


def _share(engine: str, target: Target) -> float:
    """The share of the range that an engine may differ by."""
    return SHARE_OF_RANGE[engine] if target.name == "generic" else SHARE_ON_TARGET


def _why_not_judged(net: nn.Layer, engine: str, target: Target) -> str | None:
    """Why an engine need not compute what the network computes; None where it has to."""
    name = NAMES[engine]
    if engine not in (*target.engines, *target.onnx_engines):
        return f"{name} computes otherwise than deploy_target={target.name!r} simulates"
    narrow = any(layer._weight_quant.code_bits < 8 for _, layer in quantized_layers(net))
    if engine == "onednn" and narrow:
        return f"{name} knows 8-bit weights only and rounds narrower ones once more"
    if engine in ("onednn", "onnxruntime", "openvino") and not has_int8_products():
        return f"{name} loses precision on this CPU, which has no int8 dot product"
    return None


def _judge(
    engine: str,
    expected: list[np.ndarray],
    found: list[np.ndarray],
    span: tuple[float, ...],
    floor: tuple[Difference, ...],
    share: float,
) -> tuple[tuple[Difference, ...], list[str]]:
    shapes = [values.shape for values in expected], [values.shape for values in found]
    if shapes[0] != shapes[1]:
        return (), [f"{engine}: outputs of shape {shapes[1]}, the network gives {shapes[0]}"]
    rows, lines = [], []
    for i, (a, b) in enumerate(zip(expected, found)):
        row = difference(a, b)
        rows.append(row)
        # Float noise of a few ulp is always allowed, also where the outputs span nothing.
        size = float(np.abs(a).max()) if a.size else 0.0
        allowed = max(FLOORS * floor[i].mean_abs, share * span[i], 4 * ULP * size)
        if not row.mean_abs <= allowed:
            lines.append(
                f"{engine}: output {i} differs from the network by {row.mean_abs:.3g} on average, "
                f"allowed is {allowed:.3g}"
            )
    return tuple(rows), lines


def difference(a: np.ndarray, b: np.ndarray) -> Difference:
    """Of two arrays of one shape; Top1 is taken along the last axis."""
    if not a.size:
        return Difference(0.0, 0.0, 1.0)
    delta = np.abs(a.astype(np.float64) - b.astype(np.float64))
    if a.ndim >= 2 and a.shape[-1] > 1:
        agreement = float(np.mean(a.argmax(-1) == b.argmax(-1)))
    else:
        agreement = float(np.mean(delta == 0)) if a.dtype.kind in "iub" else 1.0
    return Difference(float(delta.mean()), float(delta.max()), agreement)


def _run(net: nn.Layer, inputs: list[list[np.ndarray]]) -> list[np.ndarray]:
    with evaluating(net), paddle.no_grad():
        return _joined([_flat(net(*[paddle.to_tensor(x) for x in batch])) for batch in inputs])


def _flat(value: Any) -> list[np.ndarray]:
    """The tensors of nested lists, tuples and dictionaries, in the order of the export."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [array for item in value for array in _flat(item)]
    return [np.asarray(value.numpy())] if isinstance(value, Tensor) else []


def _joined(batches: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Each output over all batches; per-batch values of outputs without a batch axis."""
    return [np.concatenate([np.atleast_1d(x) for x in column]) for column in zip(*batches)]


def _floor(
    net: nn.Layer, inputs: list[list[np.ndarray]], expected: list[np.ndarray]
) -> tuple[Difference, ...]:
    """The largest of a few noisy runs: they scatter widely, since a flip happens or does not."""
    runs = []
    for seed in range(_NOISE_RUNS):
        with _one_ulp_noise(net, seed):
            found = _run(net, inputs)
        runs.append([difference(a, b) for a, b in zip(expected, found)])
    return tuple(
        Difference(
            max(d.mean_abs for d in column),
            max(d.max_abs for d in column),
            min(d.agreement for d in column),
        )
        for column in zip(*runs)
    )


@contextmanager
def _one_ulp_noise(net: nn.Layer, seed: int) -> Iterator[None]:
    rng = np.random.default_rng(seed)

    def hook(layer: Any, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.dtype != paddle.float32:
            return output
        signs = rng.integers(0, 2, size=output.shape, dtype=np.int8) * 2 - 1
        return output * paddle.to_tensor(1 + ULP * signs.astype(np.float32))

    leaves = [x for _, x in named_layers(net) if not x._sub_layers or hasattr(x, "_act_quant")]
    quantizers = {id(part) for x in leaves for part in x.sublayers()}
    hooks = [x.register_forward_post_hook(hook) for x in leaves if id(x) not in quantizers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
