from __future__ import annotations

import json
import shutil

import numpy as np
import paddle
import pytest
from paddle import nn

from engine.check import run_check
from engine.config import ExportConfig, load_config
from engine.errors import EngineError
from engine.export import run_export
from quant import QAT, ExportError, paddle_format, save_float_model

SPEC = [paddle.static.InputSpec([None, 3, 12, 12], "float32")]


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(3, 8, 3), nn.BatchNorm2D(8), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten(),
        nn.Linear(8, 10),
    )  # fmt: skip


def check_config(prefix, **flags) -> ExportConfig:
    return ExportConfig(check=str(prefix), num_workers=0, use_gpu=False, **flags)


@pytest.fixture
def elsewhere(tmp_path):
    """An int8 model that nothing is known of."""
    quanter = QAT()
    net = quanter.quantize(small())
    net.eval()
    quanter.calibrate(net, [np.random.default_rng(0).normal(size=(8, 3, 12, 12))])
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    return tmp_path / "net"


@pytest.fixture
def exported(finished_run, tmp_path):
    """A copy of what a run exported, with its run.json."""
    for ending in (".pdmodel", ".pdiparams"):
        shutil.copy(finished_run / "inference_model" / f"qat_model{ending}", tmp_path)
    shutil.copy(finished_run / "run.json", tmp_path / "qat_model.run.json")
    return tmp_path / "qat_model"


def scale_up(prefix, name: str, factor: float) -> None:
    graph = paddle_format.read_graph(str(prefix))
    graph.constants[name] = graph.constants[name] * np.float32(factor)
    paddle_format.save(graph, str(prefix))


def test_a_model_in_order_without_any_data(elsewhere, capsys):
    assert run_check(check_config(elsewhere)) == 0
    out = capsys.readouterr().out
    assert "weights of convolutions and matrix products: 2 int8" in out
    assert "run on 16 random inputs" in out
    assert "plain CPU: runs" in out and "oneDNN int8: runs" in out
    assert "is an int8 model in order" in out


@pytest.mark.parametrize("ending", ["", ".pdmodel", ".pdiparams"])
def test_the_file_may_be_named_with_its_ending(ending, elsewhere):
    assert run_check(check_config(f"{elsewhere}{ending}")) == 0


def test_the_report_says_what_was_printed(elsewhere, tmp_path):
    assert run_check(check_config(elsewhere, output=str(tmp_path / "report"))) == 0
    report = json.loads((tmp_path / "report.check.json").read_text())
    assert report["failures"] == []
    assert report["content"]["weights_by_storage"]["int8"] == 2
    assert report["runs"]["num_inputs"] == 16
    assert 0 <= report["runs"]["between"][0]["mean_abs"] < 1


def test_a_float_model_is_not_well(tmp_path, capsys):
    save_float_model(small(), str(tmp_path / "net"), SPEC)
    assert run_check(check_config(tmp_path / "net")) == 1
    assert "FAILED: not an int8 model" in capsys.readouterr().out


def test_a_broken_scale_is_not_well(elsewhere, capsys):
    scale_up(elsewhere, "5.weight.scale", np.nan)
    assert run_check(check_config(elsewhere)) == 1
    out = capsys.readouterr().out
    assert "10 of 10 scales are NaN or Inf" in out
    assert "plain CPU: the output holds NaN or Inf" in out
    assert "in order" not in out


def test_images_are_taken_where_run_json_names_them(exported, capsys):
    assert run_check(check_config(exported, verify_images=64)) == 0
    assert "run on 64 images of fashion_mnist" in capsys.readouterr().out


def test_with_a_checkpoint_it_is_held_against_the_network(exported, finished_run, tmp_path, capsys):
    checkpoint = str(finished_run / "best_model.pdparams")
    cfg = check_config(
        exported, checkpoint=checkpoint, verify_images=64, output=str(tmp_path / "report")
    )
    assert run_check(cfg) == 0
    out = capsys.readouterr().out
    assert "5 of 5 do not depart" in out and "verified" in out
    report = json.loads((tmp_path / "report.verify.json").read_text())
    assert [row["name"] for row in report["layers"]][0] == "features.0"
    assert (tmp_path / "report.verify.png").stat().st_size > 10_000


def test_a_layer_that_is_not_the_checkpoints_is_named(exported, finished_run, capsys):
    scale_up(exported, "fc.1.weight.scale", 1.02)
    checkpoint = str(finished_run / "best_model.pdparams")
    assert run_check(check_config(exported, checkpoint=checkpoint, verify_images=64)) == 1
    assert "the first layer that departs is fc.1" in capsys.readouterr().out
    assert run_check(check_config(exported, verify_images=64)) == 0  # nothing to hold it against


def test_all_layers_are_shown_if_asked_for(exported, finished_run, capsys):
    checkpoint = str(finished_run / "best_model.pdparams")
    for every, tables in ((False, 1), (True, 2)):
        run_check(
            check_config(exported, checkpoint=checkpoint, verify_images=16, verify_all_layers=every)
        )
        assert capsys.readouterr().out.count("layer by layer") == tables


def test_an_export_leaves_the_figures_of_its_layers(finished_run, tmp_path, capsys):
    cfg = ExportConfig(
        checkpoint=str(finished_run / "best_model.pdparams"),
        output=str(tmp_path / "m"),
        num_workers=0,
        use_gpu=False,
        verify_images=64,
    )
    assert run_export(cfg) == 0
    report = json.loads((tmp_path / "m.verify.json").read_text())
    assert report["passed"] and report["first_departing"] is None
    assert len(report["layers"]) == 5
    assert (tmp_path / "m.verify.png").read_bytes()[:4] == b"\x89PNG"
    assert "m.verify.json" in capsys.readouterr().out


def test_the_summary_of_a_training_run_stays_small(finished_run):
    verification = json.loads((finished_run / "summary.json").read_text())["verification"]
    assert verification["first_departing"] is None and "layers" not in verification


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ExportError, match=r"none\.pdmodel does not exist"):
        run_check(check_config(tmp_path / "none"))


def test_other_formats_are_an_error(tmp_path):
    (tmp_path / "net.json").write_text("{}")
    with pytest.raises(EngineError, match=r"newer format of Paddle 3; allowed is .*\.pdmodel"):
        run_check(check_config(tmp_path / "net"))
    with pytest.raises(EngineError, match="an ONNX file"):
        run_check(check_config(tmp_path / "net.onnx"))


def test_a_data_set_of_other_images_is_an_error(elsewhere):
    with pytest.raises(EngineError, match="--channels 3"):
        run_check(check_config(elsewhere, data="fashion_mnist", channels=1))


def test_the_flags(tmp_path):
    cfg = load_config(ExportConfig, ["--check=a"])
    assert cfg.check == "a" and cfg.checkpoint is None and cfg.output is None
    assert load_config(ExportConfig, ["c.pdparams", "--check", "a"]).checkpoint == "c.pdparams"
    with pytest.raises(EngineError, match="--check is empty"):
        load_config(ExportConfig, ["--check="])
    with pytest.raises(EngineError, match="CHECKPOINT is required"):
        load_config(ExportConfig, ["--output=a"])


def test_the_script_ends_with_its_code_and_one_line(script, elsewhere, tmp_path):
    done = script("export.py", "--check", str(elsewhere), "--use_gpu=False")
    assert done.returncode == 0, done.stderr
    done = script("export.py", "--check", str(tmp_path / "none"), "--use_gpu=False")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr
