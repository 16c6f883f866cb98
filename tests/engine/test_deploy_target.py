"""--deploy_target=onednn through train.py, eval.py and export.py."""

from __future__ import annotations

import json

import pytest

from engine.errors import EngineError
from engine.inference import require_engine
from quant.targets import TARGETS
from quant.verify import NAMES

FLAGS = (
    "--model=lenet",
    "--data=fashion_mnist",
    "--pretrained_model=none",
    "--use_gpu=False",
    "--num_workers=0",
    "--max_steps=3",
    "--batch_size=16",
    "--eval_batch_size=250",
    "--calibration_batches=1",
    "--verify_images=32",
)


@pytest.fixture(scope="module")
def run_folder(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onednn") / "out"
    done = script("train.py", *FLAGS, "--deploy_target=onednn", f"--model_save_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.int8_products
def test_the_int8_stage_is_that_of_onednn(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["int8_engine"] == "onednn" and summary["int8_onednn"] is None
    assert summary["verified"] is True and summary["agreement_int8_qat"] >= 0.99
    recipe = json.loads((run_folder / "run.json").read_text())
    assert recipe["quantization"]["deploy_target"] == "onednn"


def test_eval_takes_the_engine_that_the_file_is_for(run_folder, script, tmp_path):
    prefix = run_folder / "inference_model" / "qat_model"
    done = script("eval.py", str(prefix), "--max_images=64", f"--output={tmp_path}/found.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found.json").read_text())["backend"] == "onednn"


@pytest.mark.parametrize("name,warns", [("qat_model", True), ("fp32_model", False)])
def test_another_engine_than_the_file_is_for_is_warned_of(name, warns, run_folder, script):
    prefix = run_folder / "inference_model" / name
    done = script("eval.py", str(prefix), "--max_images=64", "--engine=paddle")
    assert done.returncode == 0, done.stderr
    assert ("made for --deploy_target=onednn" in done.stderr) == warns


@pytest.mark.parametrize("name", ["best_model.pdparams", "fp32_model.pdparams"])
def test_export_makes_such_a_file_of_any_checkpoint(name, run_folder, script, tmp_path):
    done = script(
        "export.py", str(run_folder / name), f"--output={tmp_path}/net", "--verify_images=32",
        "--deploy_target=onednn", "--num_workers=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shown, not judged" in done.stdout and "oneDNN int8" in done.stdout


def test_fewer_activation_bits_than_the_engine_has_end_with_one_line(script, tmp_path):
    done = script(
        "train.py", *FLAGS, "--deploy_target=onednn", "--activation_bits=4",
        f"--model_save_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "activation_bits=4" in done.stderr and "onednn" in done.stderr


@pytest.mark.int8_products
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_training_for_a_target_of_onnx_ends_with_an_onnx_file(target, script, tmp_path):
    done = script(
        "train.py", *FLAGS, f"--deploy_target={target}", f"--model_save_dir={tmp_path}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verified"] is True and summary["verification_onnx"]["passed"] is True
    assert summary["agreement_int8_qat"] >= 0.99
    assert summary["agreement_onnx_qat"] >= (0.9 if target == "tensorrt" else 0.99)
    file = tmp_path / "inference_model" / "qat_model.onnx"
    assert summary["sizes_bytes"]["onnx"] == file.stat().st_size
    assert (summary["int8_onednn"] is None) == (target != "tensorrt")
    engine = "openvino" if target == "openvino" else "onnxruntime"
    assert summary["int8_onnx_engine"] == engine
    assert f"ONNX file, {NAMES[engine]}" in done.stdout
    images = ("--max_images=250", "--use_gpu=False", "--num_workers=0")
    done = script("eval.py", str(file), *images)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    assert f"({engine})" in done.stdout
    other = "onnxruntime" if engine == "openvino" else "openvino"
    done = script("eval.py", str(file), f"--engine={other}", *images)
    assert done.returncode == 0, done.stderr
    assert ("was made for --deploy_target=openvino" in done.stderr) == (target == "openvino")


def test_a_target_whose_engine_is_missing_is_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="deploy_target=openvino.*pip install openvino"):
        require_engine(TARGETS["openvino"])
    require_engine(TARGETS["onednn"])
