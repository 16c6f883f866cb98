"""Needs the packages onnx and onnxruntime, which requirements-dev.txt brings."""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
import pytest

from data import build_dataset
from engine.config import EvalConfig
from engine.errors import EngineError
from engine.evaluate import run_evaluation
from engine.onnx_file import METADATA_KEY, OnnxFile
from engine.task import resolve_input
from models import model_info

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT

RNG = np.random.default_rng(0)
CONV = RNG.normal(size=(4, 1, 5, 5)).astype(np.float32)
GEMM = RNG.normal(size=(144, 10)).astype(np.float32)
BIAS = RNG.normal(size=10).astype(np.float32)


def numpy_logits(images: np.ndarray) -> np.ndarray:
    """Convolution 5x5 with stride 4, ReLU, matrix product, in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.float64), (5, 5), (2, 3))
    windows = windows[:, 0, ::4, ::4]
    maps = np.maximum(np.einsum("nyxij,oij->noyx", windows, CONV[:, 0].astype(np.float64)), 0)
    return maps.reshape(len(images), -1) @ GEMM + BIAS


@pytest.fixture
def write(tmp_path):
    """Writes the network above as an ONNX file."""

    def make(
        batch="n",
        shape=(1, 28, 28),
        dtype=FLOAT,
        more_inputs=(),
        output=("y",),
        nodes=(),
        metadata=None,
        name="m.onnx",
    ):
        values = {"c": CONV, "w": GEMM, "b": BIAS}
        if dtype != FLOAT:
            values = {key: value.astype(np.float16) for key, value in values.items()}
        graph = helper.make_graph(
            [
                helper.make_node("Conv", ["image", "c"], ["m"], strides=[4, 4]),
                helper.make_node("Relu", ["m"], ["r"]),
                helper.make_node("Flatten", ["r"], ["f"]),
                helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
                *nodes,
            ],
            "g",
            [
                helper.make_tensor_value_info("image", dtype, [batch, *shape]),
                *(helper.make_tensor_value_info(key, dtype, ["n", 1]) for key in more_inputs),
            ],
            [helper.make_tensor_value_info(key, dtype, None) for key in output],
            [onnx.numpy_helper.from_array(value, key) for key, value in values.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        if metadata is not None:
            entry = model.metadata_props.add()
            entry.key, entry.value = METADATA_KEY, metadata
        path = tmp_path / name
        onnx.save(model, str(path))
        return path

    return make


def images_of(count, side=28, channels=1):
    return np.random.default_rng(1).normal(size=(count, channels, side, side)).astype(np.float32)


def measured(path, **flags):
    output = path.with_suffix(".json")
    values = {"data": "fashion_mnist", "num_workers": 0, "batch_size": 64, "output": str(output)}
    assert run_evaluation(EvalConfig(path=str(path), **{**values, **flags})) == 0
    return json.loads(output.read_text())


@pytest.mark.parametrize("batch", ["n", None, 1, 4])
def test_any_number_of_images_goes_through_a_file_of_any_batch_size(batch, write):
    file = OnnxFile(write(batch=batch), threads=1)
    images = images_of(7)
    found = file(paddle.to_tensor(images)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, numpy_logits(images), rtol=1e-4, atol=1e-4)


def test_a_half_precision_file_gets_half_precision_images(write):
    file = OnnxFile(write(dtype=onnx.TensorProto.FLOAT16), threads=1)
    images = images_of(3)
    found = file(paddle.to_tensor(images)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, numpy_logits(images), rtol=0.02, atol=0.2)


@pytest.mark.parametrize("batch", ["n", 1])
def test_accuracy_equals_numpys(batch, write):
    found = measured(write(batch=batch), model="lenet", max_images=500)
    info = model_info("lenet")
    data = build_dataset("fashion_mnist", "val", resolve_input(EvalConfig(path="x"), info))
    logits = numpy_logits(np.stack([data[i][0] for i in range(500)]))
    labels = np.array([data[i][1] for i in range(500)])
    order = np.argsort(-logits, axis=1)
    assert found["top1"] == (order[:, 0] == labels).mean()
    assert found["top5"] == (order[:, :5] == labels[:, None]).any(1).mean()
    assert found["backend"] == "onnxruntime" and found["num_images"] == 500
    assert found["size_bytes"] == (write(batch=batch)).stat().st_size


def test_size_and_channels_are_taken_from_the_file_where_nobody_names_them(write):
    plain = {"mean": [0.5], "std": [0.5], "interpolation": "bilinear", "resize_size": 28}
    found = measured(write(), max_images=300, **plain)
    same = measured(write(), max_images=300, channels=1, image_size=28, **plain)
    assert found["model"] == "unknown" and found["top1"] == same["top1"]


def test_the_metadata_says_what_the_images_have_to_be(write):
    chosen = {"image_size": 28, "channels": 1, "mean": [0.2], "std": [0.7], "resize_size": 30}
    described = {
        "model": "somebodys_net",
        "num_classes": 10,
        "input": {**chosen, "interpolation": "nearest"},
        "class_names": [f"kind {n}" for n in range(10)],
    }
    path = write(metadata=json.dumps(described))
    (path.parent / "run.json").write_text("{}")  # says nothing, and does not count
    found = measured(path, max_images=300, details=str(path.parent / "details"))
    flags = {"mean": [0.2], "std": [0.7], "interpolation": "nearest", "resize_size": 30}
    same = measured(write(name="plain.onnx"), max_images=300, channels=1, image_size=28, **flags)
    other = measured(path, max_images=300, mean=[0.5], std=[0.1])
    assert found["model"] == "somebodys_net"
    assert found["per_class"][3]["name"] == "kind 3"
    assert found["top1"] == same["top1"] != other["top1"]


BROKEN_METADATA = {
    "not json": ("{", "not JSON"),
    "a list": ("[]", "holds no JSON object"),
    "an input that is none": ('{"input": 3}', "input is 3, allowed: an object"),
    "a size in words": ('{"input": {"image_size": "x"}}', "input.image_size is 'x', allowed"),
    "a mean that is no list": ('{"input": {"mean": 3}}', "input.mean is 3, allowed: a list"),
    "a mean of words": ('{"input": {"mean": ["a"]}}', r"input.mean is \['a'\], allowed: a list"),
    "a mean of two": ('{"input": {"channels": 1, "mean": [1, 2]}}', "and the flags: mean is"),
    "classes in words": ('{"num_classes": "ten"}', "num_classes is 'ten', allowed"),
    "names that are none": ('{"class_names": 5}', "class_names is 5, allowed: a list"),
    "quantization in words": ('{"quantization": "int8"}', "quantization is 'int8', allowed"),
}


@pytest.mark.parametrize("text,told", BROKEN_METADATA.values(), ids=BROKEN_METADATA.keys())
def test_metadata_that_cannot_be_used_is_refused(text, told, write):
    with pytest.raises(EngineError, match=f"m.onnx: metadata {METADATA_KEY}.*{told}") as caught:
        measured(write(metadata=text), max_images=10)
    assert "run.json" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_input_that_is_null_is_none(write):
    plain = {"mean": [0.5], "std": [0.5], "interpolation": "bilinear", "resize_size": 28}
    described = {"input": {"image_size": None}, "num_classes": 10}
    found = measured(write(metadata=json.dumps(described)), max_images=50, **plain)
    assert found["num_images"] == 50


BAD_FILES = {
    "two inputs": ({"more_inputs": ("age",)}, "takes 2 inputs .image, age.; allowed is one"),
    "two outputs": ({"output": ("y", "f")}, "has 2 outputs .y, f.; allowed is one, the logits"),
    "a map instead of logits": ({"output": ("r",)}, r"its output is \[64, 4, 6, 6\], but"),
    "doubles": ({"dtype": onnx.TensorProto.DOUBLE}, "(cannot load it|is a tensor.double.)"),
}


@pytest.mark.parametrize("kind,told", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_classifier_of_images_is_refused(kind, told, write):
    with pytest.raises(EngineError, match=told):
        measured(write(**kind), max_images=64, channels=1, image_size=28, mean=[0], std=[1])


def test_a_batch_of_no_images_is_refused(write):
    with pytest.raises(EngineError, match=r"the shape \[0, 1, 28, 28\]; allowed are sizes of 1 or"):
        OnnxFile(write(batch=0), threads=1)


@pytest.mark.parametrize("batch", [400_000, 2**40])
def test_a_batch_that_no_memory_holds_is_refused(batch, write, peak_memory):
    file = OnnxFile(write(batch=batch), threads=1)
    config = resolve_input(EvalConfig(path="x"), model_info("lenet"))
    with peak_memory() as peak:
        with pytest.raises(EngineError, match=f"takes {batch} images at a time; allowed are up to"):
            file.check_input(config)
    assert peak.size < 100_000


def of_outputs(tmp_path, nodes, output):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["n", 1, 28, 28])], [output]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("name", ["STRING", "INT64", "BOOL"])
def test_an_output_of_another_type_is_refused(name, tmp_path):
    kind = getattr(onnx.TensorProto, name)
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=kind)]
    path = of_outputs(tmp_path, nodes, helper.make_tensor_value_info("y", kind, None))
    with pytest.raises(EngineError, match=rf"output 'y' is a tensor\({name.lower()}\); allowed is"):
        measured(path)


def test_an_output_that_is_a_sequence_is_refused(tmp_path):
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["y"])]
    path = of_outputs(tmp_path, nodes, helper.make_tensor_sequence_value_info("y", FLOAT, None))
    with pytest.raises(EngineError, match=r"output 'y' is a seq\(tensor\(float\)\); allowed is"):
        measured(path)


def test_double_logits_are_taken(tmp_path, write):
    nodes = [helper.make_node("Cast", ["y"], ["d"], to=onnx.TensorProto.DOUBLE)]
    path = write()
    model = onnx.load(str(path))
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("d", onnx.TensorProto.DOUBLE, None))
    onnx.save(model, str(path))
    found = OnnxFile(path, threads=1)(paddle.to_tensor(images_of(3))).numpy()
    np.testing.assert_allclose(found, numpy_logits(images_of(3)), rtol=1e-4, atol=1e-4)


def test_a_file_that_takes_the_channels_last_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 28, 28, 3])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(EngineError, match=r"'n', 28, 28, 3.*allowed is \[N, C, H, W\]"):
        measured(tmp_path / "m.onnx")


def test_a_file_of_fewer_classes_than_the_data_is_refused(write):
    cut = helper.make_node("ReduceMax", ["y"], ["few"], axes=[1], keepdims=1)
    with pytest.raises(EngineError, match=r"its output is \[64, 1\], but fashion_mnist has 10"):
        measured(write(nodes=[cut], output=("few",)), max_images=64, model="lenet")


def test_an_output_that_does_not_follow_the_images_is_refused(write):
    one = helper.make_node("ReduceMax", ["y"], ["one"], axes=[0], keepdims=1)
    with pytest.raises(EngineError, match=r"for 64 images is \[1, 10\]"):
        measured(write(nodes=[one], output=("one",)), max_images=64, model="lenet")


def test_images_of_another_size_or_colour_are_refused_and_the_flag_named(write):
    with pytest.raises(EngineError, match="28x28 pixels, not 32x32; pass --image_size 28"):
        measured(write(), model="lenet", image_size=32)
    with pytest.raises(EngineError, match="images of 1 channels, not 3; pass --channels 1"):
        measured(write(), model="resnet18", image_size=28)


@pytest.mark.parametrize("content", [b"", b"not onnx", None], ids=["empty", "text", "cut"])
def test_a_broken_file_is_refused_in_one_line(content, write):
    path = write()
    path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    with pytest.raises(EngineError, match=r"m\.onnx: onnxruntime cannot load it") as caught:
        measured(path)
    assert "\n" not in str(caught.value)


def test_the_script_says_in_one_line_what_is_wrong(write, script):
    path = write()
    path.write_bytes(b"not onnx")
    done = script("eval.py", str(path), "--data=fashion_mnist")
    assert done.returncode == 2
    own = [line for line in done.stderr.splitlines() if "m.onnx" in line or "onnxruntime" in line]
    assert len(own) == 1 and own[0].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_without_onnx_runtime_the_message_says_what_to_install(write, monkeypatch):
    path = write()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="onnxruntime is not installed; pip install onnxruntime"):
        OnnxFile(path, threads=1)
