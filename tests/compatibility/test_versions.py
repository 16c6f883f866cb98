"""What one version of Paddle wrote, the other reads: checkpoints, exports, a run that goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from engine.checkpoint import load_latest, load_network_state, restore
from engine.matching import load_into
from engine.optimizer import build_optimizer
from engine.schedule import build_schedule
from quant import Predictor, inspect_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from make_files import SPEC, quantized  # noqa: E402

VERSIONS = ["2.6.2", "3.3.1"]


@pytest.fixture(params=VERSIONS)
def folder(request) -> Path:
    return HERE / request.param


@pytest.fixture
def expected(folder):
    with np.load(folder / "outputs.npz") as content:
        return content["x"], content["y"]


def near(found: np.ndarray, y: np.ndarray, share: float) -> bool:
    return float(np.abs(found - y).mean() / np.ptp(y)) <= share


@pytest.mark.parametrize("name", ["epoch_0.pdparams", "latest.pdparams"])
def test_a_checkpoint_of_either_version(name, folder, expected):
    x, y = expected
    paddle.seed(5)
    _, net = quantized()
    path = folder / name
    load_into(net, load_network_state(path), path)
    net.eval()
    assert near(net(paddle.to_tensor(x)).numpy(), y, 1e-6)


def test_a_checkpoint_is_one_for_paddle_itself_too(folder):
    _, net = quantized()
    state = paddle.load(str(folder / "epoch_0.pdparams"))
    assert set(state) - {"StructuredToParameterName@@"} == set(net.state_dict())
    missing, unexpected = net.set_state_dict(state)
    assert not missing and not set(unexpected) - {"StructuredToParameterName@@"}


def test_a_run_that_the_other_version_began_goes_on(folder, expected):
    x, _ = expected
    latest = load_latest(folder / "latest.pdparams")
    assert (latest.progress.stage, latest.progress.steps) == ("qat", 3)
    _, net = quantized()
    schedule = build_schedule("cosine_decay", 0.05, epoch_steps=3, num_epochs=2, step_epochs=[])
    optimizer = build_optimizer(net, schedule, 0.9, 0.0)
    restore(latest, net, optimizer, schedule, latest.progress.steps)
    assert len(latest.momentum) == sum(not p.stop_gradient for p in net.parameters())
    loss = paddle.nn.functional.cross_entropy(net(paddle.to_tensor(x)), paddle.arange(16) % 5)
    loss.backward()
    optimizer.step()
    assert np.isfinite(float(loss))


@pytest.mark.parametrize("engine", ["paddle", "onednn"])
def test_an_export_of_either_version(engine, folder, expected):
    x, y = expected
    share = 1e-5 if engine == "paddle" else 0.02
    assert near(Predictor(str(folder / "model"), engine)(x)[0], y, share)
    assert not inspect_file(str(folder / "model")).failures


def test_an_onnx_file_of_either_version(folder, expected):
    onnxruntime = pytest.importorskip("onnxruntime")
    x, y = expected
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert near(found, y, 0.02)


def test_the_files_are_of_the_network_that_stands_here():
    """Else `make_files.py` was changed and not run."""
    _, net = quantized()
    for version in VERSIONS:
        state = load_network_state(HERE / version / "epoch_0.pdparams")
        assert {k: list(v.shape) for k, v in state.items()} == {
            k: v.shape for k, v in net.state_dict().items()
        }
    assert SPEC[0].shape == (-1, 3, 8, 8)
