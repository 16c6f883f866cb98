"""A CPU without int8 dot products: what is then shown instead of judged."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, cpu

SPEC = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]


@pytest.fixture
def unlimited(monkeypatch):
    """Nobody tells oneDNN to use less than there is."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("flags : fpu avx2 avx512f", False),
        ("flags : fpu avx2 avx512_vnni", True),
        ("flags : fpu avx_vnni", True),
        ("Features : fp asimd asimddp", True),
    ],
)
def test_the_flags_of_the_processor_tell(text, expected, tmp_path, monkeypatch, unlimited):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr("builtins.open", lambda *_, _open=open, **options: _open(path, **options))
    assert cpu.has_int8_products.__wrapped__() is expected


def test_where_nothing_tells_nothing_is_waived(monkeypatch, unlimited):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert cpu.has_int8_products.__wrapped__() is True


def exported(target: str, tmp_path):
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3), nn.ReLU(), nn.Conv2D(8, 4, 3))
    quanter = QAT({"deploy_target": target})
    quanter.quantize(net, input_spec=SPEC)
    x = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    quanter.calibrate(net, [x])
    return quanter, net, x


def test_onnx_runtime_is_shown_and_not_judged_there(tmp_path, monkeypatch):
    quanter, net, x = exported("onnxruntime", tmp_path)
    quanter.export_onnx(net, str(tmp_path / "net.onnx"), SPEC)
    monkeypatch.setattr("quant.verify.has_int8_products", lambda: False)
    verdict = quanter.verify(net, str(tmp_path / "net.onnx"), [x])
    assert set(verdict.bounds) == {"onnx"} and verdict.passed
    assert any("loses precision" in note for note in verdict.notes)


def test_onednn_is_shown_and_not_judged_there(tmp_path, monkeypatch):
    quanter, net, x = exported("onednn", tmp_path)
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    monkeypatch.setattr("quant.verify.has_int8_products", lambda: False)
    verdict = quanter.verify(net, str(tmp_path / "net"), [x])
    assert verdict.bounds == {} and verdict.passed and "not verified" in str(verdict)


def test_onednn_can_be_told_to_do_without(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert cpu.has_int8_products.__wrapped__() is False
