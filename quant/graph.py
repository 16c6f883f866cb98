"""A traced network as a graph that can be edited: Paddle's ProgramDesc and its constants.

Working on the protobuf itself needs no Paddle API that differs between versions, and what is
edited is exactly what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from paddle.base.proto import framework_pb2 as pb

from . import compat
from .errors import ExportError

_INT, _FLOAT, _STRING, _INTS, _BOOL = 0, 1, 2, 3, 6
DTYPES: dict[str, int] = {
    "bool": 0,
    "int16": 1,
    "int32": 2,
    "int64": 3,
    "float16": 4,
    "float32": 5,
    "float64": 6,
    "uint8": 20,
    "int8": 21,
}
DENSE_TENSOR = 7
CONVOLUTIONS = ("conv2d", "depthwise_conv2d")


class Op:
    """One operator: `type`, inputs and outputs by slot, attributes by name."""

    def __init__(self, desc: Any) -> None:
        self.desc = desc
        # All names, kept since a walk through the graph asks every operator for them.
        self._inputs: list[str] | None = None
        self._outputs: list[str] | None = None

    @property
    def type(self) -> str:
        """Name of the operator."""
        return self.desc.type

    def inputs(self, slot: str) -> list[str]:
        """Names in an input slot; none where the slot is missing."""
        return next((list(i.arguments) for i in self.desc.inputs if i.parameter == slot), [])

    def outputs(self, slot: str) -> list[str]:
        """Names in an output slot; none where the slot is missing."""
        return next((list(o.arguments) for o in self.desc.outputs if o.parameter == slot), [])

    def input(self, slot: str) -> str:
        """The first name in an input slot; raises ExportError where there is none."""
        return self._first(self.inputs(slot), f"input {slot}")

    def output(self, slot: str) -> str:
        """The first name in an output slot; raises ExportError where there is none."""
        return self._first(self.outputs(slot), f"output {slot}")

    def _first(self, names: list[str], what: str) -> str:
        if not names:  # only in a damaged file
            raise ExportError(f"an operator {self.type} has no {what}")
        return names[0]

    def all_inputs(self) -> list[str]:
        """Names in all input slots."""
        if self._inputs is None:
            self._inputs = [name for item in self.desc.inputs for name in item.arguments]
        return self._inputs

    def all_outputs(self) -> list[str]:
        """Names in all output slots."""
        if self._outputs is None:
            self._outputs = [name for item in self.desc.outputs for name in item.arguments]
        return self._outputs

    def set_input(self, slot: str, names: list[str]) -> None:
        """Sets the names in an input slot."""
        _set_slot(self.desc.inputs, slot, names)
        self._inputs = None

    def set_output(self, slot: str, names: list[str]) -> None:
        """Sets the names in an output slot."""
        _set_slot(self.desc.outputs, slot, names)
        self._outputs = None

    def rename_input(self, old: str, new: str) -> None:
        """Reads `new` wherever `old` was read."""
        for item in self.desc.inputs:
            for i, name in enumerate(item.arguments):
                if name == old:
                    item.arguments[i] = new
        self._inputs = None

    def attr(self, name: str, default: Any = None) -> Any:
        """Value of an attribute."""
        for item in self.desc.attrs:
            if item.name == name:
                return _attr_value(item)
        return default

    def set_attr(self, name: str, value: Any) -> None:
        """Sets a bool, int, float or str attribute."""
        item = next((a for a in self.desc.attrs if a.name == name), None)
        if item is None:
            item = self.desc.attrs.add()
            item.name = name
        else:
            item.Clear()
            item.name = name
        if isinstance(value, bool):
            item.type, item.b = _BOOL, value
        elif isinstance(value, int):
            item.type, item.i = _INT, value
        elif isinstance(value, float):
            item.type, item.f = _FLOAT, value
        else:
            item.type, item.s = _STRING, value

    def set_ints(self, name: str, values: list[int]) -> None:
        """Sets an attribute that is a list of ints."""
        item = next((a for a in self.desc.attrs if a.name == name), None)
        if item is None:
            item = self.desc.attrs.add()
        item.Clear()
        item.name, item.type = name, _INTS
        item.ints.extend(values)


class Graph:
    """Blocks of ops plus the constants they read.

    Args:
        program: a ProgramDesc without feed and fetch operators.
        constants: value of every persistable variable.
        inputs, outputs: names of what is fed and fetched, in order.
    """

    def __init__(
        self, program: Any, constants: dict[str, np.ndarray], inputs: list[str], outputs: list[str]
    ) -> None:
        self.program = program
        self.constants = constants
        self.inputs = inputs
        self.outputs = outputs
        self.blocks: list[list[Op]] = [[Op(op) for op in block.ops] for block in program.blocks]
        self._fresh = 0

    def ops(self) -> Iterator[Op]:
        """All operators, block by block."""
        for block in self.blocks:
            yield from block

    def var(self, name: str) -> Any | None:
        """Description of a variable, if there is one."""
        for block in self.program.blocks:
            for var in block.vars:
                if var.name == name:
                    return var
        return None

    def shape(self, name: str) -> list[int] | None:
        """Shape as traced, -1 where it is not fixed; None where it is not known."""
        var = self.var(name)
        if var is None or var.type.type != DENSE_TENSOR:
            return None
        return list(compat.tensor_type(var.type).tensor.dims)

    def dtype(self, name: str) -> str | None:
        """Type of the elements by its NumPy name; None where it is not known."""
        var = self.var(name)
        if var is None or var.type.type != DENSE_TENSOR:
            return None
        number = compat.tensor_type(var.type).tensor.data_type
        return next((name for name, known in DTYPES.items() if known == number), None)

    def producer(self, name: str) -> Op | None:
        """The only op that writes `name`; None for an input, a constant or several writers."""
        found = [op for op in self.ops() if name in op.all_outputs()]
        return found[0] if len(found) == 1 else None

    def consumers(self, name: str) -> list[Op]:
        """The operators that read `name`."""
        return [op for op in self.ops() if name in op.all_inputs()]

    def is_private(self, name: str) -> bool:
        """True where one op reads `name` and nobody outside sees it."""
        return name not in self.outputs and len(self.consumers(name)) == 1

    def block_of(self, op: Op) -> list[Op]:
        """The block that holds `op`."""
        return next(block for block in self.blocks if any(item is op for item in block))

    def add_constant(self, name: str, value: np.ndarray) -> str:
        """Stores `value` under a name that starts with `name`; returns the name."""
        name = self._unique(name)
        value = np.ascontiguousarray(value)
        self._add_var(0, name, list(value.shape), str(value.dtype), persistable=True)
        self.constants[name] = value
        return name

    def add_like(self, name: str, like: str, dtype: str = "float32") -> str:
        """Declares a variable of the shape of `like`; returns its name."""
        name = self._unique(name)
        self._add_var(0, name, self.shape(like) or [-1], dtype)
        return name

    def add_shaped(self, name: str, shape: list[int]) -> str:
        """Declares a float32 variable; returns its name."""
        name = self._unique(name)
        self._add_var(0, name, shape, "float32")
        return name

    def add_integers(self, name: str, shape: list[int]) -> str:
        """Declares an int32 variable; returns its name."""
        name = self._unique(name)
        self._add_var(0, name, shape, "int32")
        return name

    def add_permuted(self, name: str, like: str, axis: list[int]) -> str:
        """Declares a variable of the shape of `like` with its axes permuted."""
        shape = self.shape(like) or [-1] * len(axis)
        name = self._unique(name)
        self._add_var(0, name, [shape[i] for i in axis], "float32")
        return name

    def _unique(self, name: str) -> str:
        taken = {var.name for block in self.program.blocks for var in block.vars}
        candidate = name
        while candidate in taken:
            self._fresh += 1
            candidate = f"{name}_{self._fresh}"
        return candidate

    def _add_var(
        self, block: int, name: str, shape: list[int], dtype: str, persistable: bool = False
    ) -> None:
        var = self.program.blocks[block].vars.add()
        var.name = name
        var.persistable = persistable
        var.type.type = DENSE_TENSOR
        tensor = compat.tensor_type(var.type).tensor
        tensor.data_type = DTYPES[dtype]
        tensor.dims.extend(shape)

    def insert(self, block: list[Op], before: Op, op: Op) -> None:
        """Puts `op` right before another."""
        block.insert(next(i for i, item in enumerate(block) if item is before), op)

    def insert_after(self, block: list[Op], after: Op, op: Op) -> None:
        """Puts `op` right after another."""
        block.insert(next(i for i, item in enumerate(block) if item is after) + 1, op)

    def replace(self, old: Op, new: list[Op]) -> None:
        """Puts operators in the place of one."""
        block = self.block_of(old)
        index = next(i for i, item in enumerate(block) if item is old)
        block[index : index + 1] = new

    def remove(self, op: Op) -> None:
        """Takes an operator out."""
        self.replace(op, [])

    def redirect(self, old: str, new: str) -> None:
        """Lets every reader of `old` read `new`."""
        for op in self.consumers(old):
            op.rename_input(old, new)
        self.outputs = [new if name == old else name for name in self.outputs]

    def prune(self) -> None:
        """Drops ops of the main block that no output needs, and variables that nobody names."""
        needed = set(self.outputs)
        kept: list[Op] = []
        for op in reversed(self.blocks[0]):
            if needed.intersection(op.all_outputs()):
                needed.update(op.all_inputs())
                for block in self._sub_blocks(op):
                    for inner in self.blocks[block]:
                        needed.update(inner.all_inputs())
                kept.append(op)
        self.blocks[0] = kept[::-1]
        named = set(self.inputs) | set(self.outputs)
        for op in self.ops():
            named.update(op.all_inputs())
            named.update(op.all_outputs())
        for block in self.program.blocks:
            keep = [var for var in block.vars if var.name in named]
            del block.vars[:]
            block.vars.extend(keep)
        self.constants = {k: v for k, v in self.constants.items() if k in named}

    def _sub_blocks(self, op: Op) -> list[int]:
        found: list[int] = []
        for item in op.desc.attrs:
            if item.type == 8:
                found.append(item.block_idx)
            elif item.type == 10:
                found.extend(item.blocks_idx)
        for index in list(found):
            for inner in self.blocks[index]:
                found.extend(self._sub_blocks(inner))
        return found

    def to_program(self) -> Any:
        """The ProgramDesc of the edited graph."""
        for desc, ops in zip(self.program.blocks, self.blocks):
            descs = [op.desc for op in ops]
            copies = []
            for item in descs:
                copy = pb.OpDesc()
                copy.CopyFrom(item)
                copies.append(copy)
            del desc.ops[:]
            desc.ops.extend(copies)
        for desc, ops in zip(self.program.blocks, self.blocks):
            for op, item in zip(ops, desc.ops):
                op.desc = item
        return self.program


def new_op(
    op_type: str,
    inputs: Mapping[str, Iterable[str]],
    outputs: Mapping[str, Iterable[str]],
    **attrs: Any,
) -> Op:
    """An operator with the given slots and attributes (bool, int, float or str)."""
    op = Op(pb.OpDesc())
    op.desc.type = op_type
    for slot, names in inputs.items():
        op.set_input(slot, list(names))
    for slot, names in outputs.items():
        op.set_output(slot, list(names))
    for name, value in attrs.items():
        op.set_attr(name, value)
    return op


def _set_slot(slots: Any, slot: str, names: list[str]) -> None:
    item = next((s for s in slots if s.parameter == slot), None)
    if item is None:
        item = slots.add()
        item.parameter = slot
    del item.arguments[:]
    item.arguments.extend(names)


def _attr_value(item: Any) -> Any:
    fields = {0: "i", 1: "f", 2: "s", 3: "ints", 4: "floats", 5: "strings", 6: "b", 7: "bools"}
    fields.update({9: "l", 11: "longs", 12: "float64s", 15: "float64"})
    if item.type == 16:
        return _scalar_value(item.scalar)
    if item.type == 17:
        return [_scalar_value(scalar) for scalar in item.scalars]
    field = fields.get(item.type)
    if field is None:
        return None
    value = getattr(item, field)
    return list(value) if item.type in (3, 4, 5, 7, 11, 12) else value


def _scalar_value(scalar: Any) -> Any:
    return getattr(scalar, {1: "b", 2: "i", 3: "r"}.get(scalar.type, "r"))
