from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, ExportError, Predictor, QuantError, save_float_model
from quant.paddle_format import read_constants

SPEC = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(3, 16, 3), nn.BatchNorm2D(16), nn.ReLU(), nn.Conv2D(16, 32, 3), nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip


def images(n: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def ready():
    """A quanter and a network that has seen data."""
    quanter = QAT()
    net = quanter.quantize(small())
    quanter.calibrate(net, [images()])
    return quanter, net


def test_the_receipt_is_what_the_file_holds(ready, tmp_path):
    quanter, net = ready
    prefix = str(tmp_path / "net")
    receipt = quanter.save_quantized_model(net, prefix, SPEC)
    stored = read_constants(prefix)
    assert {t.name for t in receipt.tensors} == set(stored)
    for tensor in receipt.tensors:
        value = stored[tensor.name]
        assert tensor.dtype == str(value.dtype) and tensor.shape == value.shape
        assert tensor.bytes == value.nbytes
    assert receipt.params_bytes == os.path.getsize(f"{prefix}.pdiparams")
    assert receipt.model_bytes == os.path.getsize(f"{prefix}.pdmodel")
    weights = sorted(t.bytes for t in receipt.int8_weights)
    assert weights == sorted([16 * 3 * 9, 32 * 16 * 9, 32 * 16 * 10])
    figures = receipt.to_dict()
    assert figures["quantized_weights"] == figures["int8_weights"] == 3
    assert "int8 of" in str(receipt) or "stored as int8: 3 of 3" in str(receipt)
    assert all(tensor.name in str(receipt) for tensor in receipt.tensors)


def test_no_float_copy_of_a_weight_is_stored(ready, tmp_path):
    quanter, net = ready
    quanter.save_quantized_model(net, str(tmp_path / "int8"), SPEC)
    floats = [v for v in read_constants(str(tmp_path / "int8")).values() if v.dtype != np.int8]
    assert max(value.size for value in floats) <= 32
    size = save_float_model(small(), str(tmp_path / "float"), SPEC)
    assert os.path.getsize(tmp_path / "int8.pdiparams") < 0.35 * size


def test_the_model_holds_no_call_stack_and_no_path_of_this_machine(ready, tmp_path):
    quanter, net = ready
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    content = (tmp_path / "net.pdmodel").read_bytes()
    assert b"op_callstack" not in content
    assert os.path.dirname(paddle.__file__).encode() not in content
    assert str(Path(__file__).parent).encode() not in content


def test_paddle_itself_can_load_the_file(ready, tmp_path):
    quanter, net = ready
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    code = (
        "import zlib, paddle, numpy, sys\n"
        "paddle.enable_static()\n"
        "exe = paddle.static.Executor(paddle.CPUPlace())\n"
        "program, feeds, fetches = paddle.static.load_inference_model(sys.argv[1], exe)\n"
        "x = numpy.load(sys.argv[2])\n"
        "y = exe.run(program, feed={feeds[0]: x}, fetch_list=fetches)[0]\n"
        "numpy.save(sys.argv[3], y)\n"
    )
    import subprocess
    import sys

    np.save(tmp_path / "x.npy", images())
    paths = [str(tmp_path / name) for name in ("net", "x.npy", "y.npy")]
    environment = {**os.environ, "FLAGS_enable_pir_api": "0"}
    command = [sys.executable, "-c", code, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = Predictor(str(tmp_path / "net"))(images())[0]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), found, rtol=1e-4, atol=1e-4)


def test_missing_folders_are_made(ready, tmp_path):
    quanter, net = ready
    quanter.save_quantized_model(net, str(tmp_path / "a" / "b" / "net"), SPEC)
    names = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert names == ["net.pdiparams", "net.pdmodel"]


def test_a_prefix_without_a_folder_is_the_present_one(ready, tmp_path, monkeypatch):
    quanter, net = ready
    monkeypatch.chdir(tmp_path)
    quanter.save_quantized_model(net, "save_dir", SPEC)
    assert sorted(os.listdir(tmp_path)) == ["save_dir.pdiparams", "save_dir.pdmodel"]


@pytest.mark.parametrize("prefix", ["", "folder/", None, 3, "net.pdmodel", "net.pdiparams"])
def test_a_bad_prefix_is_named(prefix, ready, tmp_path, monkeypatch):
    quanter, net = ready
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=re.escape(f"path={prefix!r}")):
        quanter.save_quantized_model(net, prefix, SPEC)
    assert os.listdir(tmp_path) == []


def test_a_path_object_will_do(ready, tmp_path):
    quanter, net = ready
    quanter.save_quantized_model(net, tmp_path / "net", SPEC)
    assert (tmp_path / "net.pdmodel").is_file() and (tmp_path / "net.pdiparams").is_file()


def test_a_network_that_saw_no_data_cannot_be_saved(tmp_path):
    quanter = QAT()
    net = quanter.quantize(small())
    with pytest.raises(ExportError, match=r"layer 0 has no activation scale.*calibrate\(\)"):
        quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    assert list(tmp_path.iterdir()) == []


def test_a_branch_that_never_ran_is_named(tmp_path):
    class Branches(nn.Layer):
        def __init__(self):
            super().__init__()
            self.taken, self.never = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            if x.mean() > 100.0:
                y = self.never(x)
            else:
                y = self.taken(x)
            return y

    quanter = QAT()
    net = quanter.quantize(Branches())
    quanter.calibrate(net, [np.ones([2, 4], np.float32)])
    spec = [paddle.static.InputSpec([None, 4], "float32")]
    with pytest.raises(ExportError, match="layer never has no activation scale"):
        quanter.save_quantized_model(net, str(tmp_path / "net"), spec)


@pytest.mark.parametrize("key", ["weight_bits", "activation_bits"])
def test_more_than_eight_bits_train_but_cannot_be_saved(key, tmp_path):
    quanter = QAT({key: 9})
    net = quanter.quantize(small())
    net(paddle.to_tensor(images())).mean().backward()
    with pytest.raises(ExportError, match=f"layer 0: {key}=9.*2 to 8"):
        quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_input_spec_is_named(ready, tmp_path):
    quanter, net = ready
    with pytest.raises(ExportError, match="input_spec=None.*InputSpec"):
        quanter.save_quantized_model(net, str(tmp_path / "net"))


def test_a_float_network_is_not_saved_as_a_quantized_one_nor_the_other_way(ready, tmp_path):
    with pytest.raises(QuantError, match=r"call quantize\(net\) first"):
        QAT().save_quantized_model(small(), str(tmp_path / "net"), SPEC)
    with pytest.raises(ExportError, match="save_quantized_model"):
        save_float_model(ready[1], str(tmp_path / "net"), SPEC)


def test_a_write_that_fails_leaves_the_old_files_whole(ready, tmp_path, monkeypatch):
    quanter, net = ready
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    net[0].weight.set_value(net[0].weight * 2)
    from quant import paddle_format

    def full_disk(value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paddle_format, "_stream", full_disk)
    with pytest.raises(OSError, match="No space left"):
        quanter.save_quantized_model(net, prefix, SPEC)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_device_leaves_nothing(ready, tmp_path, monkeypatch):
    quanter, net = ready
    real = open

    def limited(name, mode="r", *args, **kwargs):
        file = real(name, mode, *args, **kwargs)
        if "w" in mode and str(name).startswith(str(tmp_path)):
            file.write(b"half")
            file.close()
            return real("/dev/full", mode, *args, **kwargs)
        return file

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr("builtins.open", limited)
    with pytest.raises(OSError, match="No space left"):
        quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_os_error(ready, tmp_path):
    quanter, net = ready
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        quanter.save_quantized_model(net, str(tmp_path / "file" / "net"), SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_file_is_named(ready, tmp_path):
    quanter, net = ready
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    path = tmp_path / "net.pdiparams"
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-1], whole + b"x", b"\xff" * len(whole)):
        path.write_bytes(damaged)
        with pytest.raises(ExportError, match=r"net\.pdiparams"):
            read_constants(prefix)


def test_saving_twice_gives_the_same_bytes(ready, tmp_path):
    quanter, net = ready
    for name in ("a", "b"):
        quanter.save_quantized_model(net, str(tmp_path / name), SPEC)
    assert (tmp_path / "a.pdiparams").read_bytes() == (tmp_path / "b.pdiparams").read_bytes()
