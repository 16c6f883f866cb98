from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

from engine.config import EvalConfig, ExportConfig
from engine.errors import EngineError
from engine.evaluate import run_evaluation
from engine.export import run_export
from engine.files import write_json
from models import build_model
from quant import QAT, Predictor


def export_config(checkpoint, output, **flags):
    return ExportConfig(
        checkpoint=str(checkpoint),
        output=str(output),
        num_workers=0,
        use_gpu=False,
        verify_images=64,
        **flags,
    )


def outputs(prefix):
    x = np.random.default_rng(0).normal(size=(16, 1, 28, 28)).astype(np.float32)
    return Predictor(str(prefix))(x)[0]


def test_a_qat_checkpoint_becomes_the_file_that_training_exported(finished_run, tmp_path, capsys):
    prefix = tmp_path / "deploy" / "model"
    assert run_export(export_config(finished_run / "best_model.pdparams", prefix)) == 0
    out = capsys.readouterr().out
    assert "int8" in out and "verified" in out
    expected = outputs(finished_run / "inference_model" / "qat_model")
    np.testing.assert_allclose(outputs(prefix), expected, atol=1e-4 * np.abs(expected).max())


def test_a_float_checkpoint_is_calibrated_and_the_file_needs_only_its_path(
    finished_run, tmp_path, capsys
):
    prefix = tmp_path / "deploy" / "model.v1"
    cfg = export_config(
        finished_run / "fp32_model.pdparams", prefix, activation_bits=7, calibration_batches=2
    )
    assert run_export(cfg) == 0
    assert "calibrated on 2 batches" in capsys.readouterr().out
    result = tmp_path / "r.json"
    assert run_evaluation(EvalConfig(path=str(prefix), num_workers=0, output=str(result))) == 0
    found = json.loads(result.read_text())
    summary = json.loads((finished_run / "summary.json").read_text())
    assert found["top1"] == pytest.approx(summary["fp32"]["top1"], abs=0.03)
    run = json.loads((tmp_path / "deploy" / "model.v1.run.json").read_text())
    assert run["quantization"]["activation_bits"] == 7


def test_a_file_that_is_not_the_network_ends_with_code_1(
    finished_run, tmp_path, monkeypatch, capsys
):
    save = QAT.save_quantized_model

    def save_another(self, net, path, input_spec):
        weight = net.fc[2].weight
        original = weight.clone()
        weight.set_value(weight.flip(axis=1))
        receipt = save(self, net, path, input_spec)
        weight.set_value(original)
        return receipt

    monkeypatch.setattr(QAT, "save_quantized_model", save_another)
    cfg = export_config(finished_run / "best_model.pdparams", tmp_path / "m")
    assert run_export(cfg) == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "is not the network" in errors[0]
    assert "written" not in captured.out


def test_the_data_is_not_needed_where_nothing_is_calibrated_or_verified(finished_run, tmp_path):
    cfg = export_config(
        finished_run / "best_model.pdparams", tmp_path / "m", verify=False, data_dir="/nonexistent"
    )
    assert run_export(cfg) == 0
    assert (tmp_path / "m.pdiparams").exists()


@pytest.mark.parametrize("output", ["/proc/nix/m", "{file}/m"])
def test_an_output_that_cannot_be_written_is_told_before_work(output, finished_run, tmp_path):
    (tmp_path / "file").write_text("")
    path = output.format(file=tmp_path / "file")
    with pytest.raises(EngineError, match="--output"):
        run_export(export_config(finished_run / "best_model.pdparams", path))


def test_an_onnx_file_says_itself_what_it_is_and_is_measured_alone(finished_run, tmp_path, capsys):
    cfg = export_config(finished_run / "best_model.pdparams", tmp_path / "m", onnx=True, opset=13)
    assert run_export(cfg) == 0
    out = capsys.readouterr().out
    assert out.count("verified") == 2 and "ONNX Runtime" in out
    assert "quantized weights stored as int8: 5 of 5" in out.split("m.onnx: ")[1]
    moved = tmp_path / "elsewhere" / "model.onnx"
    moved.parent.mkdir()
    (tmp_path / "m.onnx").rename(moved)
    result = tmp_path / "r.json"
    assert run_evaluation(EvalConfig(path=str(moved), num_workers=0, output=str(result))) == 0
    found = json.loads(result.read_text())
    summary = json.loads((finished_run / "summary.json").read_text())
    assert found["backend"] == "onnxruntime" and found["model"] == "lenet"
    assert found["top1"] == pytest.approx(summary["int8"]["top1"], abs=0.01)


def test_a_target_of_onnx_gets_an_onnx_file_without_a_flag(finished_run, tmp_path, capsys):
    checkpoint = finished_run / "fp32_model.pdparams"
    cfg = export_config(checkpoint, tmp_path / "m", deploy_target="onnxruntime")
    assert run_export(cfg) == 0
    assert f"written: {tmp_path / 'm'}.pdmodel" in capsys.readouterr().out
    assert (tmp_path / "m.onnx").is_file()


def test_the_script_ends_with_code_2_and_one_line_for_a_missing_checkpoint(script, tmp_path):
    words = ["--model=lenet", "--data=fashion_mnist", f"--output={tmp_path / 'm'}"]
    done = script("export.py", "nix.pdparams", *words)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "nix.pdparams: no such file" in errors[0]


def test_where_pact_starts_says_nothing_without_pact(finished_run, tmp_path):
    for name in ("fp32_model", "best_model"):
        cfg = export_config(
            finished_run / f"{name}.pdparams", tmp_path / "net", pact_init="calibrated"
        )
        with pytest.raises(EngineError, match="--pact_init is calibrated.*add --use_pact"):
            run_export(cfg)
    assert not (tmp_path / "net.pdmodel").exists()


@pytest.mark.parametrize("flags", [{"pact_init": "calibrated"}, {"calibration_batches": 16}])
def test_what_calibration_does_is_refused_for_a_qat_checkpoint(flags, tmp_path):
    net = build_model("lenet", 10)
    QAT({"activation_preprocess_type": "PACT"}).quantize(net)
    path = tmp_path / "w.pdparams"
    paddle.save(net.state_dict(), str(path))
    known = {"model": "lenet", "num_classes": 10, "data": "fashion_mnist"}
    quantization = {"activation_preprocess_type": "PACT", "pact_init": "calibrated"}
    write_json(tmp_path / "run.json", {**known, "quantization": quantization})
    ((name, value),) = flags.items()
    with pytest.raises(EngineError, match=f"--{name} is {value}, but .*w.pdparams is a QAT check"):
        run_export(export_config(path, tmp_path / "net", **flags))
    assert not (tmp_path / "net.pdmodel").exists()


def test_a_float_checkpoint_is_calibrated_on_16_batches_by_default(finished_run, tmp_path, capsys):
    cfg = export_config(finished_run / "fp32_model.pdparams", tmp_path / "m", batch_size=8)
    assert run_export(cfg) == 0
    assert "calibrated on 16 batches" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags,told",
    [
        ({"weight_bits": 4}, "weight_bits 8"),
        ({"skip_quant": ["features.0"]}, r"skip_quant \[\]"),
        ({"deploy_target": "onednn"}, "deploy_target generic"),
        ({"use_pact": True}, "activation_preprocess_type None"),
    ],
)
def test_another_quantization_than_the_trained_one_is_refused(flags, told, finished_run, tmp_path):
    path = finished_run / "best_model.pdparams"
    with pytest.raises(EngineError, match=f"trained with {told}.*run.json.*leave that flag out"):
        run_export(export_config(path, tmp_path / "net", **flags))
    assert not list(tmp_path.iterdir())
