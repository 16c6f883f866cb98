from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

from engine.config import EvalConfig
from engine.errors import EngineError
from engine.evaluate import choose_backend, exported_prefix, run_evaluation


def measured(path, tmp_path, **flags):
    output = tmp_path / "result.json"
    cfg = EvalConfig(
        path=str(path), num_workers=0, use_gpu=False, batch_size=500, output=str(output), **flags
    )
    assert run_evaluation(cfg) == 0
    return json.loads(output.read_text())


@pytest.mark.parametrize(
    "name,stage,backend",
    [
        ("fp32_model.pdparams", "fp32", "eager"),
        ("best_model.pdparams", "qat", "eager"),
        ("best_model", "qat", "eager"),
        ("latest.pdparams", "qat", "eager"),
        ("inference_model/fp32_model", "fp32_exported", "paddle"),
        ("inference_model/qat_model.pdmodel", "int8", "paddle"),
    ],
)
def test_every_kind_of_file_gives_the_figures_of_its_run(
    name, stage, backend, finished_run, tmp_path, capsys
):
    found = measured(finished_run / name, tmp_path)
    summary = json.loads((finished_run / "summary.json").read_text())
    assert {"top1": found["top1"], "top5": found["top5"]} == pytest.approx(summary[stage])
    assert found["backend"] == backend
    assert found["num_images"] == 3000
    assert found["images_per_second"] > 0
    assert found["size_bytes"] > 10000
    assert f"top1 {found['top1']:.4f}" in capsys.readouterr().out


def test_the_engine_can_be_chosen(finished_run, tmp_path):
    path = finished_run / "inference_model" / "qat_model"
    found = measured(path, tmp_path, engine="onednn", threads=1)
    summary = json.loads((finished_run / "summary.json").read_text())
    assert found["backend"] == "onednn"
    assert found["top1"] == pytest.approx(summary["int8_onednn"]["top1"])


def test_the_first_images_can_be_measured_alone(finished_run, tmp_path):
    found = measured(finished_run / "fp32_model.pdparams", tmp_path, max_images=7)
    assert found["num_images"] == 7


def test_an_exported_file_without_its_run_is_measured_as_the_flags_say(finished_run, tmp_path):
    for end in ("pdmodel", "pdiparams"):
        source = finished_run / "inference_model" / f"qat_model.{end}"
        (tmp_path / "x" / "y").mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / "y" / f"m.{end}").write_bytes(source.read_bytes())
    found = measured(
        tmp_path / "x" / "y" / "m", tmp_path, data="fashion_mnist", model="lenet", max_images=500
    )
    same = measured(finished_run / "inference_model" / "qat_model", tmp_path, max_images=500)
    assert found["top1"] == same["top1"]


@pytest.mark.parametrize(
    "path,engine,kind",
    [
        ("a.onnx", "paddle", "an ONNX file"),
        ("a.onnx", "onednn", "an ONNX file"),
        ("a.pdparams", "onednn", "a checkpoint"),
        ("a.pdparams", "onnxruntime", "a checkpoint"),
        ("a.pdmodel", "onnxruntime", "an exported Paddle model"),
    ],
)
def test_an_engine_that_cannot_run_the_file_is_refused(path, engine, kind):
    cfg = EvalConfig(path=path, engine=engine)
    with pytest.raises(EngineError, match=f"--engine is {engine}, but {path} is {kind}; allowed"):
        choose_backend(cfg, exported_prefix(path) is not None, path.endswith(".onnx"))


def test_an_exported_file_of_fewer_classes_is_refused(finished_run, tmp_path):
    net = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(784, 4))
    from quant import save_float_model

    spec = [paddle.static.InputSpec([None, 1, 28, 28], "float32")]
    save_float_model(net, str(tmp_path / "m"), spec)
    with pytest.raises(EngineError, match=r"its output is \[500, 4\], but fashion_mnist has 10"):
        measured(tmp_path / "m", tmp_path, model="lenet", data="fashion_mnist")


def test_weights_of_another_model_are_refused(finished_run, tmp_path):
    cfg = EvalConfig(
        path=str(finished_run / "fp32_model.pdparams"), model="resnet18", data="fashion_mnist"
    )
    with pytest.raises(EngineError, match="another model"):
        run_evaluation(cfg)


BAD_COMMANDS = {
    "no such file": (["nix.pdparams", "--model=lenet", "--data=fashion_mnist"], "nix.pdparams"),
    "no such prefix": (["nix/model"], "nix/model"),
    "no such model file": (["nix.pdmodel"], "nix.pdmodel"),
    "no such onnx file": (["nix.onnx"], "nix.onnx"),
    "no path": ([], "path"),
}


@pytest.mark.parametrize("words,told", BAD_COMMANDS.values(), ids=BAD_COMMANDS.keys())
def test_a_command_that_cannot_work_is_one_line_and_code_2(words, told, script):
    done = script("eval.py", *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and told in errors[0].lower()


def test_a_poisoned_checkpoint_is_refused_and_not_run(tmp_path):
    import pickle

    marker = tmp_path / "marker"

    class Poison:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"w": Poison()}))
    cfg = EvalConfig(path=str(path), model="lenet", data="fashion_mnist", use_gpu=False)
    with pytest.raises(EngineError, match=r"w\.pdparams: refused"):
        run_evaluation(cfg)
    assert not marker.exists()


def test_onnx_files_run_through_onnx_runtime(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    weight = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 10])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(tmp_path / "m.onnx"))
    found = measured(tmp_path / "m.onnx", tmp_path, model="lenet", data="fashion_mnist")

    from data import build_dataset
    from engine.task import resolve_input
    from models import model_info

    cfg = EvalConfig(path="m.onnx")
    data = build_dataset("fashion_mnist", "val", resolve_input(cfg, model_info("lenet")))
    images = np.stack([data[i][0] for i in range(len(data))]).reshape(len(data), -1)
    labels = np.array([data[i][1] for i in range(len(data))])
    assert found["top1"] == pytest.approx(((images @ weight).argmax(1) == labels).mean(), abs=1e-3)
    assert found["backend"] == "onnxruntime"
