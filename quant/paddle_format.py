"""Writes and reads Paddle's inference format: PREFIX.pdmodel and PREFIX.pdiparams.

`.pdmodel` is a serialized ProgramDesc. `.pdiparams` holds every persistable variable of its main
block, ordered by name, each as a LoDTensor stream: uint32 version 0, uint64 number of LoD levels
(0), uint32 version 0, int32 length of the TensorDesc message, that message, the raw data.

The model knows its weights by a digest (BLAKE2b of the whole `.pdiparams`), so that a damaged file,
or one of another export, is not taken for the right one. It stands in the name of a variable that
no operator uses, which every version of Paddle leaves alone.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from paddle.base.proto import framework_pb2 as pb

from . import compat
from .errors import ExportError
from .graph import DENSE_TENSOR, DTYPES, Graph, Op, new_op
from .whole_files import write_whole

_FEED_MINIBATCH, _FETCH_LIST = 9, 10
_NUMPY = {number: np.dtype(name) for name, number in DTYPES.items()}

_DIGEST_NAME = "paddleqat.weights."
_DIGEST_BYTES = 16

# Attributes that inference sets itself or does not use. oneDNN's operators are handed all that
# there are at each call, which takes longer than some kernels; and the call stack holds the paths
# of the machine that the network was traced on.
_TRAINING_ONLY = {
    "exhaustive_search",
    "force_fp32_output",
    "mkldnn_data_type",
    "onednn_data_type",
    "op_callstack",
    "op_device",
    "op_namescope",
    "op_role_var",
    "use_addto",
    "use_cudnn",
    "use_mkldnn",
    "use_onednn",
    "with_quant_attr",
    "workspace_size_MB",
}


# Operators of Paddle that touch what is outside of the network.
_DOES_MORE = re.compile(
    r"(save|load)(_combine)?|read|read_file|py_func|run_program|print|create_.*reader"
    r"|check_numerics|.*_engine|ap_.*|custom_.*"
    r"|(?!graph_)(.*_)?(send|recv)(_.*)?|(.*_)?listen_and_serv|(pull|push|distributed)_.*"
    r"|c_.*|comm_init.*|gen_.*_id|(en|de)queue|queue_generator|.*barrier"
    r"|(.*_)?all_?(reduce|gather|to_?all)(_.*)?|reduce_scatter|broadcast|global_(scatter|gather)"
)


def save(graph: Graph, prefix: str) -> None:
    """Writes the graph under PREFIX.pdmodel and PREFIX.pdiparams, each whole or not at all."""
    program = _with_feed_and_fetch(graph)
    names = sorted(var.name for var in program.blocks[0].vars if _is_stored(var))
    missing = [name for name in names if name not in graph.constants]
    if missing:
        raise ExportError(
            f"forward reads tensors that are no parameter or buffer ({', '.join(missing)}): "
            "make them one, with create_parameter or register_buffer"
        )
    folder = os.path.dirname(prefix)
    if folder:
        os.makedirs(folder, exist_ok=True)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def write_weights(path: str) -> None:
        with open(path, "wb") as file:
            for name in names:
                stream = _stream(graph.constants[name])
                digest.update(stream)
                file.write(stream)

    def write_model(path: str) -> None:  # after the weights
        var = program.blocks[0].vars.add()
        var.name = _DIGEST_NAME + digest.hexdigest()
        var.type.type = DENSE_TENSOR
        compat.tensor_type(var.type).tensor.data_type = DTYPES["bool"]
        with open(path, "wb") as file:
            file.write(program.SerializeToString())

    write_whole({f"{prefix}.pdiparams": write_weights, f"{prefix}.pdmodel": write_model})


def read_program(prefix: str) -> Any:
    """The ProgramDesc of PREFIX.pdmodel.

    Raises:
        ExportError: the file is no ProgramDesc.
    """
    program = pb.ProgramDesc()
    with open(f"{prefix}.pdmodel", "rb") as file:
        data = file.read()
    try:
        program.ParseFromString(data)
        if not len(program.blocks):
            raise ValueError("it has no block")
        if not all(isinstance(name, str) for name in _names(program)):
            raise ValueError("a name in it is no text")  # of invalid UTF-8 come bytes
    except Exception as error:
        raise ExportError(f"{prefix}.pdmodel is no model of Paddle: {error}") from None
    return program


def _names(program: Any) -> Iterator[Any]:
    for block in program.blocks:
        for var in block.vars:
            yield var.name
        for op in block.ops:
            yield op.type
            for slot in (*op.inputs, *op.outputs):
                yield slot.parameter
                yield from slot.arguments
            for attr in op.attrs:
                yield attr.name
                yield attr.s
                yield from attr.strings


def read_constants(prefix: str) -> dict[str, np.ndarray]:
    """Every stored tensor of PREFIX.pdiparams by name.

    Raises:
        ExportError: a file is damaged, or holds a type of tensor that is not known here.
    """
    with open(f"{prefix}.pdiparams", "rb") as file:
        return dict(_tensors(prefix, read_program(prefix), file.read()))


def check_complete(prefix: str) -> None:
    """See that a model can be run: Paddle loads weights that are cut short without a word.

    Raises:
        ExportError: PREFIX.pdiparams does not hold what PREFIX.pdmodel says, or is not the file
            that was written with it; or the model has operators that do more than compute.
    """
    path = f"{prefix}.pdiparams"
    with open(path, "rb") as file:
        if os.path.getsize(path) == 0:  # which cannot be mapped
            data: Any = b""
        else:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        program = read_program(prefix)
        _check_harmless(program, prefix)
        try:
            for _ in _tensors(prefix, program, data):
                pass
        except _UnknownType:
            pass  # Paddle has more types than this project; then Paddle has to judge
        for var in program.blocks[0].vars:
            if var.name.startswith(_DIGEST_NAME):
                digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
                if var.name != _DIGEST_NAME + digest:
                    raise ExportError(
                        f"{path} is damaged, or was not written together with {prefix}.pdmodel: "
                        "its content is not that which the model was exported with"
                    )


def _check_harmless(program: Any, prefix: str) -> None:
    """Refuse operators that read or write files, talk to other machines or call Python."""
    found = {op.type for block in program.blocks for op in block.ops}
    harmful = sorted(name for name in found if _DOES_MORE.fullmatch(name))
    if harmful:
        raise ExportError(
            f"{prefix}.pdmodel has operators that do more than compute ({', '.join(harmful)}), so "
            "it is not run"
        )


class _UnknownType(ExportError):
    pass


def _tensors(prefix: str, program: Any, data: Any) -> Iterator[tuple[str, np.ndarray]]:
    source = f"{prefix}.pdiparams"
    at = 0
    for name in sorted(var.name for var in program.blocks[0].vars if _is_stored(var)):
        value, at = _parse_stream(data, at, source)
        yield name, value
    if at != len(data):
        raise ExportError(f"{source} holds {len(data) - at} bytes more than its model")


def read_graph(prefix: str) -> Graph:
    """What PREFIX.pdmodel and PREFIX.pdiparams hold, as a graph without feed and fetch operators.

    Raises:
        ExportError: PREFIX.pdiparams is damaged.
    """
    program = read_program(prefix)
    block = program.blocks[0]
    inputs = [Op(op).output("Out") for op in block.ops if op.type == "feed"]
    outputs = [Op(op).input("X") for op in block.ops if op.type == "fetch"]
    for i in reversed(range(len(block.ops))):
        if block.ops[i].type in ("feed", "fetch"):
            del block.ops[i]
    for i in reversed(range(len(block.vars))):
        var = block.vars[i]
        kind = var.type.type
        if kind in (_FEED_MINIBATCH, _FETCH_LIST) or var.name.startswith(_DIGEST_NAME):
            del block.vars[i]
    return Graph(program, read_constants(prefix), inputs, outputs)


def _is_stored(var: Any) -> bool:
    return var.persistable and var.type.type == DENSE_TENSOR


def _with_feed_and_fetch(graph: Graph) -> Any:
    program = pb.ProgramDesc()
    program.CopyFrom(graph.to_program())
    block = program.blocks[0]
    for name, kind in (("feed", _FEED_MINIBATCH), ("fetch", _FETCH_LIST)):
        var = block.vars.add()
        var.name, var.persistable = name, True
        var.type.type = kind
    for var in block.vars:
        if var.name in graph.inputs:
            var.need_check_feed = True
            var.stop_gradient = True
    feeds = [
        new_op("feed", {"X": ["feed"]}, {"Out": [name]}, col=i).desc
        for i, name in enumerate(graph.inputs)
    ]
    fetches = [
        new_op("fetch", {"X": [name]}, {"Out": ["fetch"]}, col=i).desc
        for i, name in enumerate(graph.outputs)
    ]
    ops = [*feeds, *block.ops, *fetches]
    copies = []
    for op in ops:
        copy = pb.OpDesc()
        copy.CopyFrom(op)
        copies.append(copy)
    del block.ops[:]
    block.ops.extend(copies)
    for block in program.blocks:
        for op in block.ops:
            kept = [item for item in op.attrs if item.name not in _TRAINING_ONLY]
            del op.attrs[:]
            op.attrs.extend(kept)
    return program


def _stream(value: np.ndarray) -> bytes:
    desc = pb.VarType.TensorDesc()
    desc.data_type = DTYPES[str(value.dtype)]
    desc.dims.extend(value.shape)
    header = desc.SerializeToString()
    head = struct.pack("<IQIi", 0, 0, 0, len(header))
    return head + header + np.ascontiguousarray(value).tobytes()


def _parse_stream(data: Any, at: int, source: str) -> tuple[np.ndarray, int]:
    try:
        version, levels, tensor_version, length = struct.unpack_from("<IQIi", data, at)
        at += 20
        if version or levels or tensor_version or not 0 <= length <= len(data) - at:
            raise ValueError("not a tensor stream")
        desc = pb.VarType.TensorDesc()
        desc.ParseFromString(data[at : at + length])
        at += length
        dtype = _NUMPY.get(desc.data_type)
        if dtype is None:
            raise _UnknownType(f"{source} holds tensors of type {desc.data_type}, unknown here")
        count = int(np.prod(desc.dims, dtype=np.int64)) if desc.dims else 1
        value = np.frombuffer(data, dtype=dtype, count=count, offset=at).reshape(list(desc.dims))
    except _UnknownType:
        raise
    except Exception as error:
        raise ExportError(f"{source} is damaged at byte {at}: {error}") from None
    return value, at + value.nbytes
