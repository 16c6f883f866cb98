"""Read what ``paddle.save`` writes, without running what a pickle can hold.

A pickle is a program for a small stack machine, and Python's own machine calls any function that
the file names. This one knows the two dozen instructions that arrays and containers need, and
calls a fixed table of harmless constructors; everything else is refused. All sizes are checked
against the bytes that are there, so memory stays in proportion to the file.
"""

from __future__ import annotations

import pickletools
import reprlib
from typing import Any

import numpy as np

# Type codes of the arrays that checkpoints hold; uint16 is how Paddle stores bfloat16.
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")

MAX_DIMENSIONS = 32

PUSHES_ITS_ARGUMENT = {
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
}
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NEW_CONTAINERS: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IGNORED = {"PROTO", "FRAME"}


class UnsafePickle(ValueError):
    """The pickle holds something that is neither an array nor a plain container."""


class _Global:
    """A function or class that the pickle names; only its meaning in `_CALLS` is ever used."""

    def __init__(self, name: str) -> None:
        if name not in _CALLS and name != "numpy.ndarray":
            raise UnsafePickle(f"it names {reprlib.repr(name)}, which no weights need")
        self.name = name


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise UnsafePickle(what)


def _as_bytes(value: Any) -> bytes:
    # Python 2 and protocol 2 store bytes as text of the same code points.
    if isinstance(value, str):
        return value.encode("latin1")
    _require(isinstance(value, bytes), "it has an array whose content is not bytes")
    return value


def _empty_array(args: tuple[Any, ...]) -> np.ndarray:
    _require(len(args) == 3 and isinstance(args[0], _Global), "it has an array of an unknown kind")
    return np.empty(0, dtype=np.int8)


def _dtype(args: tuple[Any, ...]) -> np.dtype[Any]:
    _require(
        len(args) >= 1 and args[0] in DTYPES,
        f"it has an array of the type {reprlib.repr(args[:1])}",
    )
    return np.dtype(args[0]).newbyteorder("<")


def _scalar(args: tuple[Any, ...]) -> Any:
    _require(len(args) == 2 and isinstance(args[0], np.dtype), "it has an odd numpy scalar")
    data = _as_bytes(args[1])
    _require(len(data) == args[0].itemsize, "it has a numpy scalar of a wrong length")
    return np.frombuffer(data, args[0])[0].item()


def _encode(args: tuple[Any, ...]) -> bytes:
    _require(
        len(args) == 2 and args[1] == "latin1" and isinstance(args[0], str), "it has odd bytes"
    )
    return args[0].encode("latin1")


def _tuple(args: tuple[Any, ...]) -> tuple[Any, ...]:
    # Paddle stores a tensor that is no parameter as the pair of its name and its array.
    _require(len(args) == 1 and isinstance(args[0], (list, tuple)), "it has an odd tuple")
    _require(len(args[0]) <= 2, "it has an odd tuple")
    return tuple(args[0])


def _dict(args: tuple[Any, ...]) -> dict[str, Any]:
    _require(args == (), "it has an ordered dictionary with arguments")
    return {}


# numpy moved its core in 2.0; protocol 2 uses the names that Python 2 had.
_CALLS = {
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "builtins.tuple": _tuple,
    "__builtin__.tuple": _tuple,
    "collections.OrderedDict": _dict,
}


def _build(target: Any, state: Any) -> None:
    """Fill an array that `_empty_array` made; a dtype only confirms its byte order."""
    _require(isinstance(state, tuple), "it has an object with an odd state")
    if isinstance(target, np.dtype):
        _require(len(state) >= 2 and state[1] in ("<", "|"), "it has a big-endian array")
        return
    _require(isinstance(target, np.ndarray) and len(state) == 5, "it has an object with a state")
    _, shape, dtype, fortran_order, content = state
    data = _as_bytes(content)
    _require(isinstance(dtype, np.dtype), "it has an array without a type")
    _require(
        isinstance(shape, tuple)
        and len(shape) <= MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**48 for n in shape),
        "it has an array of an odd shape",
    )
    count = 1
    for size in shape:
        count *= size
    _require(count * dtype.itemsize == len(data), "it has an array whose content is cut")
    target.__setstate__((1, shape, dtype, bool(fortran_order), data))


class _Machine:
    """The stack, the marks on it and the memo of a pickle.

    Args:
        budget: how many bytes of array content may be made. A pickle can name the same bytes again
            and again, so the length of the file alone does not bound that.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def spend(self, made: Any) -> None:
        """Count what a constructor made."""
        if isinstance(made, np.ndarray):
            self.budget -= made.nbytes
        elif isinstance(made, bytes):
            self.budget -= len(made)
        _require(self.budget >= 0, "it makes more array content than the file has bytes")

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        _require(isinstance(target, dict), "it sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            _require(isinstance(key, (str, int)), "it has a dictionary key that is no name")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        _require(isinstance(target, list), "it appends to something that is no list")
        target.extend(items)

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        stack = self.stack
        if name in PUSHES_ITS_ARGUMENT:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in NEW_CONTAINERS:
            stack.append(NEW_CONTAINERS[name]())
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name in SHORT_TUPLES:
            items = tuple(stack[-SHORT_TUPLES[name] :])
            del stack[-SHORT_TUPLES[name] :]
            stack.append(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self.set_items([key, value])
        elif name == "SETITEMS":
            self.set_items(self.pop_to_mark())
        elif name == "APPEND":
            self.extend([stack.pop()])
        elif name == "APPENDS":
            self.extend(self.pop_to_mark())
        elif name == "GLOBAL":
            stack.append(_Global(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(f"{module}.{attribute}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            _require(
                isinstance(function, _Global) and function.name in _CALLS,
                "it calls something that is no constructor",
            )
            _require(isinstance(arguments, tuple), "it calls a constructor without arguments")
            made = _CALLS[function.name](arguments)
            self.spend(made)
            stack.append(made)
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
            self.spend(stack[-1])
        elif name not in IGNORED:
            raise UnsafePickle(f"it uses the instruction {name}, which no weights need")


def loads(data: bytes) -> Any:
    """Return the object in a pickle of arrays, numbers, strings, lists, tuples and dictionaries.

    Args:
        data: the content of a file that ``paddle.save`` wrote (pickle protocol 2 to 4).

    Raises:
        UnsafePickle: the pickle holds something else; the message says what.
        ValueError: these bytes are no pickle, or one that was cut.
    """
    # Protocol 2 takes two steps from the text in the file to an array: bytes, then the array.
    machine = _Machine(budget=2 * len(data))
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (result,) = machine.stack
                return result
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("instructions that do not fit together") from error
    raise ValueError("no end")
