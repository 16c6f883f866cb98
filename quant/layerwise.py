"""Holds each layer of an exported file against the layer of the network that it came from.

Two things are measured. *Alone*: the file's layer is cut out and gets the network's own input, so
nothing that came before can blur what it does. *In the file*: its input and output while the whole
file runs, where every value that rounding has moved across a step shows in all layers after it.
A layer whose figures alone are bad is wrong; one that is right alone and whose input in the file
is bad follows something wrong that is no layer: an activation, a pooling, a sum.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import nn

from . import paddle_format
from .convert import quantized_layers
from .errors import VerifyError
from .file_layers import RESCALED_TO, FileLayer, find_layers, standing_alone, with_outputs
from .graph import Graph
from .layers import base_kind
from .modes import evaluating
from .onnx_layers import OnnxGraph
from .onnx_predictor import OnnxPredictor
from .predictor import Predictor
from .recorder import LayerCall, recording

MAX_INPUTS = 8  # as many samples are compared, each of which has millions of values in a network
_MAX_ELEMENTS = 400_000  # of the inputs: two images of 224 pixels
# A layer alone may differ by this share of its output's range, or by a multiple of what one ulp of
# noise on its input does to it. Both engines stay below 1e-6 where the CPU has int8 instructions
# (VNNI); without them oneDNN rounds weights once more or saturates sums, and that is to be seen.
ALONE = {"paddle": 1e-5, "onnx": 1e-5, "onednn": 1e-4}
FLOORS = 3.0
_EQUAL = 1e-5  # outputs are equal within this share of the range
# Given the same input, so many codes may lie one beside the network's: values on a rounding step.
_MOVED_CODES = 1e-3


@dataclass(frozen=True)
class LayerError:
    """How far one tensor of the file is from the network's.

    Attributes:
        sqnr_db: signal-to-noise ratio in dB; inf where there is no error.
        mean, max: |difference| as a share of the range (max - min).
        agreement: share of equal values.
    """

    sqnr_db: float
    mean: float
    max: float
    agreement: float

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which knows no infinity: None."""
        return {key: value if math.isfinite(value) else None for key, value in vars(self).items()}


@dataclass(frozen=True)
class LayerRow:
    """One call of one layer. Of a figure that could not be had, None.

    Attributes:
        name, kind: the layer's name in the network; 'Conv2D' or 'Linear'.
        call: 0, or which call of a layer that runs several times.
        alone: its output on the network's input.
        alone_floor: what one ulp of noise on that input changes at most, as a share of the range.
        codes_alone: share of equal codes that its quantizer makes of the network's input.
        input: its quantized input within the file; `agreement` counts equal codes.
        output: its output within the file; `agreement` counts values equal within 1e-5 of the
            range.
        input_floor, output_floor: mean |difference| of the network from itself with one ulp of
            noise after each layer, as a share of the range.
        departs: 'layer' or 'quantizer' where the file's layer is wrong, 'before' where its input
            within the file is; '' where nothing is.
        note: why something was not compared.
    """

    name: str
    kind: str
    call: int = 0
    alone: LayerError | None = None
    alone_floor: float | None = None
    codes_alone: float | None = None
    input: LayerError | None = None
    output: LayerError | None = None
    input_floor: float | None = None
    output_floor: float | None = None
    departs: str = ""
    note: str = ""

    @property
    def title(self) -> str:
        """The name, with the number of the call where there are several."""
        return self.name if not self.call else f"{self.name} (call {self.call + 1})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            key: value.to_dict() if isinstance(value, LayerError) else value
            for key, value in vars(self).items()
        }


@dataclass(frozen=True)
class LayerReport:
    """All rows, in the order in which the layers run.

    Attributes:
        engine: what ran the file.
        num_inputs: how many samples were compared.
        rows: one per call of a layer.
        notes: what was not compared, and why.
    """

    engine: str
    num_inputs: int = 0
    rows: tuple[LayerRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def first_departing(self) -> LayerRow | None:
        """The first layer in the order of running that departs."""
        return next((row for row in self.rows if row.departs), None)

    def of_wrong_layers(self) -> LayerReport:
        """Without what is only suspected: an input that is off though no layer is wrong.

        On a few inputs the floor is that of the flips that happened, and one other flip can exceed
        it many times over.
        """
        rows = [replace(row, departs="") if row.departs == "before" else row for row in self.rows]
        return replace(self, rows=tuple(rows))


class _Sums:
    """Adds up what a `LayerError` is made of."""

    def __init__(self) -> None:
        self.signal = self.noise = self.total = self.largest = 0.0
        self.count = self.equal = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, exact: np.ndarray, found: np.ndarray, step: float | None = None) -> None:
        """`step`: values count as equal within half a step; None takes 1e-5 of the range."""
        if not exact.size:
            return
        # float32 does here: differences of close numbers are exact, and NumPy sums pairwise.
        a, b = exact.ravel(), found.ravel().astype(exact.dtype, copy=False)
        self.count += a.size
        self.low, self.high = min(self.low, a.min()), max(self.high, a.max())
        delta = np.abs(a - b)
        within = _EQUAL * self.range if step is None else step / 2
        self.signal += float(a @ a)
        self.noise += float(delta @ delta)
        self.total += float(delta.sum(dtype=np.float64))
        self.largest = float(np.maximum(self.largest, delta.max()))  # keeps a NaN
        self.equal += int(np.count_nonzero(delta <= within))

    @property
    def range(self) -> float:
        return max(float(self.high - self.low), 1e-30) if self.count else 1e-30

    def error(self) -> LayerError | None:
        if not self.count:
            return None
        if self.noise == 0:
            sqnr = math.inf
        else:
            sqnr = 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf
        mean, largest = self.total / self.count, self.largest
        shares = (float(mean / self.range), float(largest / self.range))
        return LayerError(sqnr, *shares, self.equal / self.count)


@dataclass
class _Subject:
    """A call of a layer in the network, the layer of the file, and what was measured."""

    name: str
    layer: Any
    call: int
    found: FileLayer
    note: str = ""
    bias_step: float = 0.0  # of a bias that is rounded to integers, in units of the output
    alone: _Sums = field(default_factory=_Sums)
    alone_floor: float = 0.0
    codes: _Sums = field(default_factory=_Sums)
    input: _Sums = field(default_factory=_Sums)
    output: _Sums = field(default_factory=_Sums)
    input_floor: list[_Sums] = field(default_factory=list)
    output_floor: list[_Sums] = field(default_factory=list)

    @property
    def scale(self) -> float:
        return float(self.layer._act_quant.scale_numpy()[0])

    @property
    def step(self) -> float:
        return self.scale / self.layer._act_quant.grid.high

    def input_unit(self) -> float:
        """How many of the file's units of its input make one of the network's."""
        grid = self.layer._act_quant.grid
        if not self.found.is_rescaled or self.scale == 0:
            return 1.0
        return RESCALED_TO / (self.scale * 127 / grid.high)


def compare_layers(
    net: nn.Layer,
    prefix: str,
    inputs: list[list[np.ndarray]],
    engine: str,
    share: float | None,
    noisy: Sequence[Callable[[], Any]],
) -> LayerReport:
    """Compares layer by layer.

    Args:
        net: the network that was exported.
        prefix: the exported file, for 'onnx' with its ending.
        inputs: batches, each with one array per input; the first samples are taken, at most
            `MAX_INPUTS`.
        engine: 'paddle' or 'onednn'; 'onnx' for an ONNX file, as its operators are stored.
        share: the share of its range that the mean difference of an input within the file may
            reach; None where the engine is not judged.
        noisy: makers of contexts in which `net` runs with one ulp of noise after each layer.

    Raises:
        VerifyError, ExportError: the file does not run, or is damaged.
    """
    file: _Stored = _OnnxFile(prefix) if engine == "onnx" else _PaddleFile(prefix)
    layers, lost = file.find_layers()
    if not layers:
        note = "the file names no layer of a quantized network; it is not compared layer by layer"
        return LayerReport(engine, notes=(note,))
    batch = _few(file.input_sizes(), inputs)
    with tempfile.TemporaryDirectory() as folder, evaluating(net), paddle.no_grad():
        with recording(net, with_noise=True) as calls:
            net(*[paddle.to_tensor(x) for x in batch])
        subjects, notes = _match(calls, layers, lost, net)
        if subjects:
            by_call = {(c.name, n): c for c, n in zip(calls, _numbers(calls))}
            pairs = [(subject, by_call[subject.name, subject.call]) for subject in subjects]
            _compare(_FileRuns(file, subjects, engine, folder), batch, pairs)
            for make in noisy:
                with make(), recording(net, with_noise=False) as others:
                    net(*[paddle.to_tensor(x) for x in batch])
                _add_floor(pairs, others)
    count = batch[0].shape[0] if batch[0].ndim else 1
    rows = tuple(_row(subject, engine, share) for subject in subjects)
    return LayerReport(engine, count, rows, tuple(notes))


def _few(sizes: list[int], inputs: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The first samples, where the file takes any number of them; else the first batch."""
    batch = inputs[0]
    lengths = {array.shape[0] if array.ndim else 0 for array in batch}
    if any(size != -1 for size in sizes) or len(lengths) != 1 or 0 in lengths:
        return batch
    largest = max(array[0].size for array in batch)
    count = max(1, min(MAX_INPUTS, _MAX_ELEMENTS // max(largest, 1)))
    return [array[:count] for array in batch]


# --- which call of the network is which layer of the file ------------------------------------


def _numbers(calls: list[LayerCall]) -> list[int]:
    """Of each call, how many the same layer had before."""
    seen: dict[str, int] = {}
    numbers = []
    for call in calls:
        numbers.append(seen.get(call.name, 0))
        seen[call.name] = numbers[-1] + 1
    return numbers


def _match(
    calls: list[LayerCall],
    layers: list[FileLayer],
    lost: list[str],
    net: nn.Layer,
) -> tuple[list[_Subject], list[str]]:
    """Pairs the n-th call of a layer with the n-th layer of the file of that name.

    Layers with equal weights are stored once, under the name of the first of them.
    """
    stored: dict[str, list[FileLayer]] = {}
    for found in layers:
        stored.setdefault(found.name, []).append(found)
    owner: dict[str, str] = {}
    by_name = {call.name: call for call in calls}
    for name, call in by_name.items():
        key = _stored_name(call.layer)
        if key not in stored:
            same = (n for n, c in by_name.items() if _same_weight(call.layer, c.layer))
            key = next((_stored_name(by_name[n].layer) for n in same), key)
        owner[name] = key
    groups: dict[str, list[tuple[LayerCall, int]]] = {}
    for call, number in zip(calls, _numbers(calls)):
        groups.setdefault(owner[call.name], []).append((call, number))
    subjects: dict[tuple[str, int], _Subject] = {}
    absent = []
    for key, group in groups.items():
        found_layers = stored.get(key, [])
        if len(found_layers) != len(group):
            absent += [call.name for call, _ in group]
            continue
        for (call, number), found in zip(group, found_layers):
            subject = _Subject(call.name, call.layer, number, found, _hidden(call, found))
            if call.layer.integer_bias is not None:
                subject.bias_step = subject.step * found.weight_step
            subjects[call.name, number] = subject
    order = [(call.name, number) for call, number in zip(calls, _numbers(calls))]
    notes = []
    if absent or lost:
        names = ", ".join(dict.fromkeys([*absent, *lost]))
        notes.append(f"not compared, since they run in a branch or cannot be told apart: {names}")
    silent = [name for name, _ in quantized_layers(net) if name not in by_name]
    if silent:
        notes.append(f"not compared, since they did not run on these inputs: {', '.join(silent)}")
    return [subjects[key] for key in order if key in subjects], notes


def _stored_name(layer: Any) -> str:
    """The name under which the export stores a layer's tensors."""
    return layer.quant_name or type(layer).__name__


def _same_weight(a: Any, b: Any) -> bool:
    if a is b or list(a.weight.shape) != list(b.weight.shape):
        return False
    return bool(np.array_equal(a.weight.numpy(), b.weight.numpy()))


def _hidden(call: LayerCall, found: FileLayer) -> str:
    """Why the network's own output cannot be told; '' where it can."""
    if found.batch_norm_follows:
        return ""
    if call.has_activation:
        return "its BatchNorm has an activation inside: output not compared"
    if found.has_bias and call.normalized is None and call.layer.bias is None:
        return "what was folded into it is no layer: output not compared"
    return ""


# --- running the file -----------------------------------------------------------------------


class _Stored(Protocol):
    """A file whose layers can be found, shown, and cut out."""

    def find_layers(self) -> tuple[list[FileLayer], list[str]]:
        """The layers in the order of running, and the names of those that cannot be followed."""

    def input_sizes(self) -> list[int]:
        """The first size of each input, -1 where it is open."""

    def show(self, names: list[str], path: str, engine: str) -> tuple[list[str], Any]:
        """All outputs of a copy that also returns these tensors, and what runs it."""

    def cut(self, layers: list[FileLayer], unsigned: set[int], path: str, engine: str) -> Any:
        """What runs a copy in which each layer stands alone."""


class _PaddleFile:
    def __init__(self, prefix: str) -> None:
        self.graph = paddle_format.read_graph(prefix)

    def find_layers(self) -> tuple[list[FileLayer], list[str]]:
        return find_layers(self.graph)

    def input_sizes(self) -> list[int]:
        return [(self.graph.shape(name) or [0])[0] for name in self.graph.inputs]

    def show(self, names: list[str], path: str, engine: str) -> tuple[list[str], Any]:
        whole = with_outputs(self.graph, names)
        return whole.outputs, self._run(whole, path, engine)

    def cut(self, layers: list[FileLayer], unsigned: set[int], path: str, engine: str) -> Any:
        alone = standing_alone(self.graph, layers, unsigned, _sees_all(engine))
        return self._run(alone, path, engine)

    def _run(self, graph: Graph, path: str, engine: str) -> Predictor:
        paddle_format.save(graph, path)
        return _opened(lambda: Predictor(path, engine))


class _OnnxFile:
    def __init__(self, path: str) -> None:
        import onnx

        self.graph = OnnxGraph(onnx.load(path))

    def find_layers(self) -> tuple[list[FileLayer], list[str]]:
        return self.graph.find_layers()

    def input_sizes(self) -> list[int]:
        return self.graph.input_sizes()

    def show(self, names: list[str], path: str, engine: str) -> tuple[list[str], Any]:
        model = self.graph.with_outputs(names)
        return [item.name for item in model.graph.output], self._run(model, path, engine)

    def cut(self, layers: list[FileLayer], unsigned: set[int], path: str, engine: str) -> Any:
        return self._run(self.graph.standing_alone(layers), path, engine)

    def _run(self, model: Any, path: str, engine: str) -> OnnxPredictor:
        import onnx

        onnx.save(model, f"{path}.onnx")
        return _opened(lambda: OnnxPredictor(f"{path}.onnx", engine))


def _opened(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except VerifyError as error:
        raise VerifyError(f"a copy of the file that shows its layers: {error}") from None


def _sees_all(engine: str) -> bool:
    """False for oneDNN, which fuses a convolution with what follows.

    To return its result would keep it from that; to return the inputs of the quantizers changes
    nothing (a test sees to that).
    """
    return engine != "onednn"


class _FileRuns:
    """The two copies of the file, ready to run."""

    def __init__(self, file: _Stored, subjects: list[_Subject], engine: str, folder: str) -> None:
        self.subjects, self.engine = subjects, engine
        self.sees_all = _sees_all(engine)
        names = [s.found.source for s in subjects]
        if self.sees_all:
            names += [s.found.quantized for s in subjects] + [s.found.output for s in subjects]
        unsigned = {
            i for i, s in enumerate(subjects)
            if engine == "onednn" and s.layer._act_quant.grid.is_unsigned
        }  # fmt: skip
        self._outputs, self._whole = file.show(names, os.path.join(folder, "whole"), engine)
        layers = [s.found for s in subjects]
        self._alone = file.cut(layers, unsigned, os.path.join(folder, "alone"), engine)

    def whole(self, batch: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors of the file on these inputs, by name."""
        return dict(zip(self._outputs, self._whole(batch)))

    def alone(self, fed: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Results, and quantized inputs where they are to be had, of each layer by itself."""
        found = self._alone(fed)
        count = len(self.subjects)
        return found[:count], found[count:]


def _compare(
    runs: _FileRuns, batch: list[np.ndarray], pairs: list[tuple[_Subject, LayerCall]]
) -> None:
    whole = runs.whole(batch)
    plain: list[np.ndarray] = []
    exact: list[np.ndarray] = []
    for subject, call in pairs:
        shape, unit = whole[subject.found.source].shape, np.float32(subject.input_unit())
        for fed, value in ((plain, call.x), (exact, call.quantized)):
            moved = _moved(subject, value, subject.found.source_is_last)
            fed.append(np.ascontiguousarray(moved.reshape(shape) * unit))
    results, _ = runs.alone(exact)
    for (subject, call), result in zip(pairs, results):
        if not subject.note:
            y, noise = _expected(subject, call)
            subject.alone.add(y, result / _output_unit(subject, pairs))
            subject.alone_floor = max(subject.alone_floor, noise)
    results, codes = runs.alone(plain)
    for i, (subject, call) in enumerate(pairs):
        expected = _moved(subject, call.quantized, subject.found.quantized_is_last)
        if runs.sees_all:
            subject.codes.add(expected, codes[i] / subject.input_unit(), subject.step)
            found = whole[subject.found.quantized] / subject.input_unit()
            output = whole[subject.found.output] / _output_unit(subject, pairs)
            if not subject.note:
                subject.output.add(_expected(subject, call)[0], output)
        else:
            if not subject.note:
                y = _expected(subject, call)[0]
                subject.codes.add(y, results[i] / _output_unit(subject, pairs))
            expected = _moved(subject, call.quantized, subject.found.source_is_last)
            found = _quantize(subject, whole[subject.found.source] / subject.input_unit())
        subject.input.add(expected, found, subject.step)


def _quantize(subject: _Subject, x: np.ndarray) -> np.ndarray:
    """What the layer's quantizer makes of `x`, in NumPy."""
    grid, step = subject.layer._act_quant.grid, subject.step
    if step == 0:
        return np.zeros_like(x)
    return np.clip(np.rint(x / step), grid.low, grid.high) * step


def _moved(subject: _Subject, value: np.ndarray, is_last: bool) -> np.ndarray:
    """An input of the network with its axes in the order of the file's tensor."""
    if getattr(subject.layer, "_data_format", "NCHW") == "NHWC" and not is_last:
        return value.transpose(0, 3, 1, 2)
    return value


def _expected(subject: _Subject, call: LayerCall) -> tuple[np.ndarray, float]:
    """What the file's output stands for, in its order of axes, and its float floor."""
    value, noise = call.y, call.noise
    if call.normalized is not None and not subject.found.batch_norm_follows:
        value, noise = call.normalized, call.normalized_noise
    was_last = getattr(subject.layer, "_data_format", "NCHW") == "NHWC"
    if was_last and subject.found.output_is_first:
        value = value.transpose(0, 3, 1, 2)
    return value, noise


def _output_unit(subject: _Subject, pairs: list[tuple[_Subject, LayerCall]]) -> float:
    """How many of the file's units of the output make one of the network's."""
    if subject.found.read_rescaled is None:
        return 1.0
    readers = (s for s, _ in pairs if s.found.quantized == subject.found.read_rescaled)
    reader = next(readers, None)
    return 1.0 if reader is None else reader.input_unit()


def _add_floor(pairs: list[tuple[_Subject, LayerCall]], others: list[LayerCall]) -> None:
    noisy = {(call.name, n): call for call, n in zip(others, _numbers(others))}
    for subject, call in pairs:
        other = noisy.get((subject.name, subject.call))
        if other is None:
            continue
        floors = (_Sums(), _Sums())
        floors[0].add(call.quantized, other.quantized)
        floors[1].add(_expected(subject, call)[0], _expected(subject, other)[0])
        subject.input_floor.append(floors[0])
        subject.output_floor.append(floors[1])


# --- the verdict on a layer -----------------------------------------------------------------


def _row(subject: _Subject, engine: str, share: float | None) -> LayerRow:
    codes = subject.codes.error()
    row = LayerRow(
        name=subject.name,
        kind=base_kind(subject.layer),
        call=subject.call,
        alone=subject.alone.error(),
        alone_floor=subject.alone_floor / subject.alone.range if subject.alone.count else None,
        codes_alone=codes.agreement if codes is not None and _sees_all(engine) else None,
        input=subject.input.error(),
        output=subject.output.error(),
        input_floor=_largest_mean(subject.input_floor),
        output_floor=_largest_mean(subject.output_floor),
        note=subject.note,
    )
    return row if share is None else replace(row, departs=_departs(subject, engine, share, row))


def _largest_mean(floors: list[_Sums]) -> float | None:
    errors = [error.mean for error in (sums.error() for sums in floors) if error is not None]
    return max(errors) if errors else None


def _departs(subject: _Subject, engine: str, share: float, row: LayerRow) -> str:
    if row.alone is not None:
        # Rounded in float32 here and in float64 there, a bias may be one integer off.
        step = 1.01 * subject.bias_step / subject.alone.range
        allowed = max(ALONE[engine], FLOORS * (row.alone_floor or 0.0)) + step
        if not row.alone.max <= allowed:
            return "layer"
    codes = subject.codes.error()
    if codes is not None and not _same_codes(subject, engine, codes):
        return "quantizer"
    if row.input is not None and not row.input.mean <= max(FLOORS * (row.input_floor or 0), share):
        return "before"
    return ""


def _same_codes(subject: _Subject, engine: str, found: LayerError) -> bool:
    if not _sees_all(engine):  # of the output, where the codes are not to be seen
        return found.mean <= ALONE[engine]
    one_step = 1.01 * subject.step / subject.codes.range
    return found.agreement >= 1 - _MOVED_CODES and found.max <= one_step


# --- for people -----------------------------------------------------------------------------

_REASONS = {
    "layer": "given the network's own input, its output differs by {alone.max:.2g} of its range",
    "quantizer": "its input quantizer makes other integers of the network's own input",
    "before": "its input differs by {input.mean:.2g} of its range on average, and no layer before "
    "is wrong: look at what lies between (an activation, a pooling, a sum)",
}
WORST = 10


def why(row: LayerRow, engine: str) -> str:
    """One line that says in what the file's layer departs."""
    reason = _REASONS[row.departs].format(alone=row.alone, input=row.input)
    return f"{engine}: the first layer that departs is {row.title}: {reason}"


def worst_first(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """The rows by what they show.

    Departing ones come first, then the order is that of the difference alone where it is more than
    rounding noise, then that of the input within the file.
    """

    def key(row: LayerRow) -> tuple[bool, float, float]:
        alone = row.alone.max if row.alone is not None else 0.0
        entering = row.input.mean if row.input is not None else 0.0
        return (not row.departs, -alone if alone > min(ALONE.values()) else 0.0, -entering)

    return sorted(rows, key=key)


def format_layers(rows: Sequence[LayerRow], title: str, every: bool = False) -> str:
    """The rows as a table of plain text: all in the order of running, or the `WORST` worst."""
    shown = list(rows) if every else worst_first(rows)[:WORST]
    right = sum(not row.departs for row in rows)
    width = max(len("layer"), *(len(row.title) for row in shown))
    some = "" if len(shown) == len(rows) else f"; the {WORST} that differ most:"
    lines = [
        f"layer by layer ({title}): {right} of {len(rows)} do not depart{some}",
        f"{'':<{width}}  {'alone, max |d|':^17}  {'input in the file, mean |d|':^34}  "
        f"{'output, mean |d|':^16}",
        f"{'layer':<{width}} {'file':>9} {'floor':>8}  {'equal':>9} {'dB':>6} {'file':>8} "
        f"{'floor':>8}  {'dB':>7} {'file':>8}",
    ]
    for row in shown:
        alone, entering, leaving = row.alone, row.input, row.output
        cells = [
            f"{row.title:<{width}}",
            _share(None if alone is None else alone.max, 9),
            _share(row.alone_floor, 8),
            f"{'-' if entering is None else format(entering.agreement, '.3%'):>10}",
            _decibels(entering, 6),
            _share(None if entering is None else entering.mean, 8),
            _share(row.input_floor, 8),
            _decibels(leaving, 8),
            _share(None if leaving is None else leaving.mean, 8),
        ]
        flag = f"  departs: {row.departs}" if row.departs else ""
        lines.append(" ".join(cells).rstrip() + flag + (f"  ({row.note})" if row.note else ""))
    lines.append("|d| in shares of the tensor's range; dB: signal to noise")
    return "\n".join(lines)


def _share(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.1e'):>{width}}"


def _decibels(error: LayerError | None, width: int) -> str:
    return f"{'-' if error is None else format(error.sqnr_db, '.1f'):>{width}}"
