from __future__ import annotations

import csv
import json

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from engine.config import ENGINES, EvalConfig
from engine.errors import EngineError
from engine.evaluate import check_engine, kind_of, run_evaluation
from engine.loading import load_network
from engine.task import task_of_file


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
        ("fp32_model.pdparams", "fp32", "native"),
        ("best_model.pdparams", "qat", "native"),
        ("best_model", "qat", "native"),
        ("latest.pdparams", "qat", "native"),
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


def test_an_exported_file_may_be_of_a_model_that_is_none_of_ours(finished_run, tmp_path):
    for end in ("pdmodel", "pdiparams"):
        source = finished_run / "inference_model" / f"qat_model.{end}"
        (tmp_path / f"m.{end}").write_bytes(source.read_bytes())
    run = json.loads((finished_run / "run.json").read_text())
    run["model"] = "somebodys_net"
    (tmp_path / "m.run.json").write_text(json.dumps(run))
    found = measured(tmp_path / "m", tmp_path)
    summary = json.loads((finished_run / "summary.json").read_text())
    assert found["model"] == "somebodys_net" and found["top1"] == summary["int8"]["top1"]


ENGINES_OF = {
    "a.pdparams": ("a checkpoint", {"auto", "native", "paddle"}),
    "a.safetensors": ("a checkpoint", {"auto", "native", "paddle"}),
    "m.pdmodel": ("an exported Paddle model", {"auto", "paddle", "onednn"}),
    "m.pdiparams": ("an exported Paddle model", {"auto", "paddle", "onednn"}),
    "m": ("an exported Paddle model", {"auto", "paddle", "onednn"}),
    "a.onnx": ("an ONNX file", {"auto", "onnxruntime", "openvino"}),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ENGINES_OF)
def test_an_engine_runs_the_files_it_can_and_refuses_the_others(name, engine, tmp_path):
    for file in ("a.pdparams", "a.safetensors", "m.pdmodel", "m.pdiparams", "a.onnx"):
        (tmp_path / file).touch()
    path = str(tmp_path / name)
    title, engines = ENGINES_OF[name]
    cfg = EvalConfig(path=path, engine=engine)
    if engine in engines:
        check_engine(cfg, kind_of(path))
    else:
        with pytest.raises(EngineError, match=f"--engine is {engine}, but .* is {title}; allowed"):
            check_engine(cfg, kind_of(path))


def test_a_safetensors_checkpoint_gives_the_figures_of_its_pdparams(finished_run, tmp_path):
    state = paddle.load(str(finished_run / "best_model.pdparams"))
    path = finished_run / "best_model_again.safetensors"
    save_file({key: value.numpy() for key, value in state.items()}, str(path))
    try:
        found = measured(path, tmp_path)
    finally:
        path.unlink()
    summary = json.loads((finished_run / "summary.json").read_text())
    assert found["top1"] == summary["qat"]["top1"]
    assert found["backend"] == "native"


def test_details_count_the_classes_of_the_very_answers(finished_run, tmp_path, capsys):
    found = measured(
        finished_run / "best_model.pdparams", tmp_path, details=str(tmp_path / "details")
    )
    task = task_of_file(
        EvalConfig(path="x"), finished_run / "best_model.pdparams", needs_network=True
    )
    net, _ = load_network(task, finished_run / "best_model.pdparams")
    net.eval()
    data = task.dataset("val")
    images = np.stack([data[i][0] for i in range(len(data))])
    labels = np.array([data[i][1] for i in range(len(data))])
    with paddle.no_grad():
        logits = net(paddle.to_tensor(images)).numpy()
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, logits.argmax(1)), 1)
    # Another batch size rounds other sums, which can turn a tie; that is all that may differ.
    assert np.abs(np.array(found["confusion_matrix"]) - matrix).sum() <= 4
    assert np.sum(found["confusion_matrix"], axis=1).tolist() == np.bincount(labels).tolist()
    right = sum(row["top1"] * row["images"] for row in found["per_class"])
    assert right / 3000 == pytest.approx(found["top1"])
    in_five = sum(row["top5"] * row["images"] for row in found["per_class"])
    assert in_five / 3000 == pytest.approx(found["top5"])
    with open(tmp_path / "details" / "confusion_matrix.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == list(task.class_names)
    assert [[int(x) for x in row[1:]] for row in rows[1:]] == found["confusion_matrix"]
    told = capsys.readouterr().out
    assert "most often confused: " in told and "confusion_matrix.png" in told


def test_without_details_only_the_figures_are_written(finished_run, tmp_path):
    found = measured(finished_run / "fp32_model.pdparams", tmp_path)
    assert "per_class" not in found
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_scores_that_are_no_numbers_are_told(finished_run, tmp_path, capsys):
    state = paddle.load(str(finished_run / "fp32_model.pdparams"))
    name = list(state)[-1]  # the last bias
    state[name] = state[name] * float("nan")
    paddle.save(state, str(finished_run / "nan.pdparams"))
    try:
        found = measured(finished_run / "nan.pdparams", tmp_path, max_images=20)
    finally:
        (finished_run / "nan.pdparams").unlink()
    assert (found["top1"], found["top5"]) == (0.0, 0.0)
    assert "warning: 20 images have scores that are not numbers" in capsys.readouterr().err


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
    "an engine that does not exist": (["nix.onnx", "--engine=tensorrt"], "onnxruntime"),
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


def test_a_folder_of_exported_models_names_them(finished_run):
    with pytest.raises(EngineError, match=r"folder of exported models.*fp32_model, .*qat_model"):
        run_evaluation(EvalConfig(path=str(finished_run / "inference_model")))


@pytest.mark.parametrize(
    "flags,told",
    [({"model": "resnet50"}, "--channels 1"), ({"image_size": 32}, "--image_size 28")],
)
def test_images_that_an_exported_file_does_not_take_are_told_by_flag(flags, told, finished_run):
    path = str(finished_run / "inference_model" / "qat_model")
    with pytest.raises(EngineError, match=f"takes images of .*pass {told}"):
        run_evaluation(EvalConfig(path=path, num_workers=0, use_gpu=False, **flags))
