"""Writes what the tests read that hold versions of Paddle against each other.

    python tests/compatibility/make_files.py

makes ``tests/compatibility/VERSION/`` with the installed version: checkpoints of a small quantized
network, its exported files, an image batch and what the network makes of it.
"""

from __future__ import annotations

import sys
import zlib  # noqa: F401  (before paddle: see quant/__init__.py)
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import paddle
from paddle import nn

from engine.checkpoint import CheckpointFolder, Progress
from quant import QAT

SPEC = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]


class Small(nn.Layer):
    """Every kind of tensor that a checkpoint holds, in few bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(3, 4, 3, padding=1), nn.BatchNorm2D(4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2D(4, 4, 3, padding=1, groups=4), nn.BatchNorm2D(4))
        self.head = nn.Linear(4, 5)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Images [N, 3, 8, 8] to logits [N, 5]."""
        x = self.stem(x)
        return self.head(nn.functional.relu6(x + self.block(x)).mean([2, 3]))


def quantized() -> tuple[QAT, Small]:
    """The network before it learned anything."""
    quanter = QAT({"activation_preprocess_type": "PACT"})
    net = Small()
    quanter.quantize(net, input_spec=SPEC)
    return quanter, net


def main() -> None:
    """Trains three steps and writes."""
    folder = Path(__file__).parent / paddle.__version__
    folder.mkdir(exist_ok=True)
    paddle.seed(0)
    quanter, net = quantized()
    x = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    optimizer = paddle.optimizer.Momentum(0.05, 0.9, parameters=net.parameters())
    for _ in range(3):
        nn.functional.cross_entropy(net(paddle.to_tensor(x)), paddle.arange(16) % 5).backward()
        optimizer.step()
        optimizer.clear_grad()
    checkpoints = CheckpointFolder(folder)
    checkpoints.save_epoch(0, net, optimizer)
    checkpoints.save_latest(net, optimizer, Progress(stage="qat", epoch=1, steps=3))
    net.eval()
    quanter.save_quantized_model(net, str(folder / "model"), SPEC)
    quanter.export_onnx(net, str(folder / "model.onnx"), SPEC)
    with paddle.no_grad():
        np.savez(folder / "outputs.npz", x=x, y=net(paddle.to_tensor(x)).numpy())
    (folder / "epoch_0.pdopt").unlink()


if __name__ == "__main__":
    main()
