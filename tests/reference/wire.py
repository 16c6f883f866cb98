"""Reads .pdmodel and .pdiparams from the description of their formats alone, without Paddle.

A .pdmodel is the protobuf message ProgramDesc; a protobuf message is a sequence of fields, each a
number and a value (https://protobuf.dev/programming-guides/encoding/). The numbers below are those
of Paddle's framework.proto. A .pdiparams is a stream per tensor, in the order of their names.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from .graph import Graph, Node

DTYPES = {0: "bool", 2: "int32", 3: "int64", 5: "float32", 6: "float64", 20: "uint8", 21: "int8"}
DENSE = 7


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def fields(data: bytes) -> dict[int, list[Any]]:
    """The values of a message by field number: integers, and bytes for all else."""
    found: dict[int, list[Any]] = defaultdict(list)
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 1:
            value, at = data[at : at + 8], at + 8
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            value, at = data[at : at + 4], at + 4
        found[number].append(value)
    return found


def signed(value: int, bits: int = 64) -> int:
    """A varint as a number that may be negative."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _ints(values: list[Any]) -> list[int]:
    out: list[int] = []
    for value in values:
        if isinstance(value, int):
            out.append(signed(value))
            continue
        at = 0  # a packed list
        while at < len(value):
            number, at = _varint(value, at)
            out.append(signed(number))
    return out


def _floats(values: list[Any]) -> list[float]:
    return [x for value in values for (x,) in struct.iter_unpack("<f", value)]


def _attribute(data: bytes) -> tuple[str, Any]:
    item = fields(data)
    kind = item[2][0]
    readers = {
        0: lambda: _ints(item[3])[0],
        1: lambda: _floats(item[4])[0],
        2: lambda: item[5][0].decode(),
        3: lambda: _ints(item[6]),
        4: lambda: _floats(item[7]),
        6: lambda: bool(item[10][0]),
        9: lambda: _ints(item[13])[0],
        11: lambda: _ints(item[15]),
    }
    return item[1][0].decode(), readers[kind]() if kind in readers else None


def _slots(items: list[bytes]) -> dict[str, list[str]]:
    found = {}
    for item in items:
        slot = fields(item)
        found[slot[1][0].decode()] = [name.decode() for name in slot[2]]
    return found


def read_paddle(prefix: str | Path) -> Graph:
    """The graph of PREFIX.pdmodel with the tensors of PREFIX.pdiparams."""
    program = fields(Path(f"{prefix}.pdmodel").read_bytes())
    block = fields(program[1][0])
    stored = []
    for item in block[3]:
        var = fields(item)
        kind = fields(var[2][0])[1][0]
        if var[3] and var[3][0] and kind == DENSE:
            stored.append(var[1][0].decode())
    graph = Graph(constants=_tensors(Path(f"{prefix}.pdiparams").read_bytes(), sorted(stored)))
    for item in block[4]:
        op = fields(item)
        kind = op[3][0].decode()
        inputs, outputs = _slots(op[1]), _slots(op[2])
        if kind == "feed":
            graph.inputs.append(outputs["Out"][0])
        elif kind == "fetch":
            graph.outputs.append(inputs["X"][0])
        else:
            graph.nodes.append(Node(kind, inputs, outputs, dict(map(_attribute, op[4]))))
    return graph


def _tensors(data: bytes, names: list[str]) -> dict[str, np.ndarray]:
    values, at = {}, 0
    for name in names:
        at += 4  # version
        (levels,) = struct.unpack_from("<Q", data, at)
        at += 8
        for _ in range(levels):
            (size,) = struct.unpack_from("<Q", data, at)
            at += 8 + size
        at += 4  # version
        (size,) = struct.unpack_from("<i", data, at)
        description = fields(data[at + 4 : at + 4 + size])
        at += 4 + size
        dtype = np.dtype(DTYPES[description[1][0]])
        shape = _ints(description[2])
        count = int(np.prod(shape)) if shape else 1
        values[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    assert at == len(data)
    return values
