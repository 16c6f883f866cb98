"""Models of unknown origin: what they must not be able to do."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.base.framework import OpProtoHolder

from quant import (
    QAT,
    ExportError,
    Predictor,
    QuantError,
    VerifyError,
    inspect_file,
    save_float_model,
)
from quant.graph import new_op
from quant.paddle_format import _DOES_MORE, read_program

X = np.ones([2, 4], np.float32)


@pytest.fixture
def model(tmp_path):
    spec = [paddle.static.InputSpec([None, 4], "float32")]
    prefix = tmp_path / "net"
    save_float_model(nn.Linear(4, 3), str(prefix), spec)
    return prefix


def with_operator(prefix, op) -> None:
    program = read_program(str(prefix))
    block = program.blocks[0]
    block.ops.add().CopyFrom(op.desc)
    prefix.with_suffix(".pdmodel").write_bytes(program.SerializeToString())


def stored_name(prefix) -> str:
    return next(
        var.name
        for var in read_program(str(prefix)).blocks[0].vars
        if var.persistable and var.name not in ("feed", "fetch")
    )


@pytest.mark.parametrize("kind", ["save", "save_combine"])
def test_an_operator_that_writes_a_file_is_not_run(kind, model, tmp_path):
    """Paddle Inference runs it: without the check the file is there."""
    target = tmp_path / "written"
    op = new_op(kind, {"X": [stored_name(model)]}, {}, file_path=str(target), overwrite=True)
    with_operator(model, op)
    for engine in ("paddle", "onednn"):
        with pytest.raises(VerifyError, match=rf"more than compute \({kind}\), so it is not run"):
            Predictor(str(model), engine)(X)
    assert not target.exists()
    inspect_file(str(model))  # looking is allowed


def test_an_operator_whose_side_effect_is_a_file_is_not_run(model, tmp_path):
    place = tmp_path / "dump_"
    op = new_op("check_numerics", {"tensor": [stored_name(model)]}, {}, var_name="x")
    op.set_attr("op_type", "matmul")
    op.set_attr("output_dir", str(place))
    with_operator(model, op)
    with pytest.raises(VerifyError, match="more than compute .check_numerics."):
        Predictor(str(model))(X)
    assert not list(tmp_path.glob("dump_*"))


def test_what_the_operators_of_paddle_are_taken_for():
    names = sorted(OpProtoHolder.instance().op_proto_map)
    refused = {name for name in names if _DOES_MORE.fullmatch(name)}
    assert {"save", "save_combine", "load", "load_combine", "py_func", "read_file"} <= refused
    assert {"print", "run_program", "c_comm_init", "p_send", "p_recv", "barrier"} <= refused
    assert {"check_numerics", "all_reduce", "broadcast", "c_gen_xccl_id"} & set(names) <= refused
    harmless = {
        "conv2d",
        "broadcast_tensors",
        "reduce_sum",
        "all_close",
        "graph_send_recv",
        "read_from_array",
        "spectral_norm",
        "log",
        "assign",
    }
    assert not refused & harmless
    assert len(refused) < 110


def test_a_name_that_is_no_text_is_refused(model):
    path = model.with_suffix(".pdmodel")
    name = stored_name(model).encode()
    path.write_bytes(path.read_bytes().replace(name, b"\xff" * len(name)))
    for read in (lambda: inspect_file(str(model)), lambda: Predictor(str(model))):
        with pytest.raises(QuantError, match="a name in it is no text"):
            read()


def test_an_operator_without_its_input_is_refused(tmp_path):
    prefix = tmp_path / "net"
    quanter, net = QAT(), nn.Linear(4, 3)
    quanter.quantize(net)
    quanter.calibrate(net, [X])
    quanter.save_quantized_model(net, str(prefix), [paddle.static.InputSpec([None, 4], "float32")])
    program = read_program(str(prefix))
    for op in program.blocks[0].ops:
        if op.type == "quantize_linear":
            del op.inputs[:]
    prefix.with_suffix(".pdmodel").write_bytes(program.SerializeToString())
    with pytest.raises(ExportError, match="an operator quantize_linear has no input X"):
        inspect_file(str(prefix))
