"""What the converters of operators write into: nodes and initializers of one ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import compat
from ..graph import DTYPES, Graph, Op
from ..lower import Lowered
from ..targets import Target

FLOAT = "float32"
_DTYPE_NAMES = {number: name for name, number in DTYPES.items()}


class Writer:
    """Nodes in order, constants as they are first read.

    A name of the Paddle graph may be written twice (operators in place), one of an ONNX graph may
    not; so a converter asks `input` and `output` for the names to use.

    Args:
        graph: the lowered network.
        opset: version of the default operator set.
        target: what the file is for; decides how activations and biases are stored.
        lowered: what `lower` has put into the graph.
    """

    def __init__(self, graph: Graph, opset: int, target: Target, lowered: Lowered) -> None:
        self.graph = graph
        self.opset = opset
        self.target = target
        self._weights = set(lowered.weights)
        self.unsigned_codes = {op.output("Y") for op in lowered.unsigned}
        self.unrounded_codes = {op.output("Y") for op in lowered.unrounded}
        self.nodes: list[Any] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.done: set[int] = set()
        self._current: dict[str, str] = {}
        self._stored: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
        self._taken: set[str] = set(graph.inputs)

    # --- names -------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name that no tensor has yet."""
        name, number = hint, 0
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name

    def read(self, name: str) -> str:
        """The ONNX name of a Paddle variable as it is now."""
        if name in self._current:
            return self._current[name]
        if name in self.graph.constants:
            # A weight keeps the name of its layer, even where another has the same codes.
            store = self._own if name in self._weights else self.constant
            self._current[name] = store(self.graph.constants[name], name)
            return self._current[name]
        return name

    def input(self, op: Op, slot: str = "X") -> str:
        """The ONNX name of an operator's input."""
        return self.read(op.input(slot))

    def output(self, op: Op, slot: str = "Out") -> str:
        """A name for an operator's output; from now on the variable is this tensor."""
        return self.define(op.output(slot))

    def define(self, name: str) -> str:
        """A name for a new value of a Paddle variable."""
        self._current[name] = self.fresh(name)
        return self._current[name]

    def same(self, op: Op, source: str, slot: str = "Out") -> None:
        """Lets an output be a tensor that is there already."""
        self._current[op.output(slot)] = source

    # --- what is written ---------------------------------------------------------------------

    def constant(self, value: Any, hint: str = "constant") -> str:
        """An initializer; equal ones are stored once."""
        array = np.asarray(value)
        array = array if array.flags["C_CONTIGUOUS"] else np.array(array, order="C")
        key = (array.tobytes(), str(array.dtype), array.shape)
        if key not in self._stored:
            self._stored[key] = self.fresh(hint)
            self.initializers[self._stored[key]] = array
        return self._stored[key]

    def _own(self, value: np.ndarray, hint: str) -> str:
        name = self.fresh(hint)
        self.initializers[name] = np.array(value, order="C")
        return name

    def ints(self, values: Sequence[int]) -> str:
        """An int64 vector, as shapes and axes are given."""
        return self.constant(np.asarray(values, np.int64).reshape([-1]), "ints")

    def node(
        self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any
    ) -> str:
        """Adds an operator with one output; returns its name."""
        from onnx import helper

        output = output or self.fresh(f"{kind.lower()}_out")
        name = f"{kind}:{output}"
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **given))
        return output

    def nodes_with(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any
    ) -> None:
        """Adds an operator with several outputs."""
        from onnx import helper

        name = f"{kind}:{outputs[0]}"
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=name, **attrs))

    def apart(self, x: str, output: str | None = None) -> str:
        """The same value, by an operator that changes nothing: OpenVINO does not fuse across it.

        It adds elu(0), which ONNX Runtime computes in advance and then drops, sum and all.
        """
        zero = "computed_zero"
        if not any(zero in node.output for node in self.nodes):
            self.node("Elu", [self.constant(np.zeros([], np.float32), "zero")], zero)
        return self.node("Add", [x, zero], output)

    # --- what is known of tensors ------------------------------------------------------------

    def shape(self, name: str) -> list[int]:
        """Shape of a Paddle variable as traced, -1 where it is open."""
        if name in self.graph.constants:
            return list(self.graph.constants[name].shape)
        return list(self.graph.shape(name) or [])

    def dtype(self, name: str) -> str:
        """Type of a Paddle variable, as NumPy calls it."""
        var = self.graph.var(name)
        return _DTYPE_NAMES[compat.tensor_type(var.type).tensor.data_type] if var else FLOAT

    def scalar(self, value: float, like: str) -> str:
        """A constant of the type of a Paddle variable, shape []."""
        return self.constant(np.asarray(value, self.dtype(like)), "scalar")


Converter = Callable[[Writer, Op], None]
CONVERTERS: dict[str, Converter] = {}


def converts(*op_types: str) -> Callable[[Converter], Converter]:
    """Registers the converter of these Paddle operators."""

    def register(function: Converter) -> Converter:
        for op_type in op_types:
            CONVERTERS[op_type] = function
        return function

    return register


def axes_of(values: Sequence[int], rank: int) -> list[int]:
    """Axes counted from 0."""
    return [int(axis) % max(rank, 1) for axis in values]
