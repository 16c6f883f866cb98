from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from engine.checkpoint import CheckpointFolder, Progress
from engine.config import TrainConfig
from engine.logging import RunLog
from engine.session import Session
from engine.task import task_of_training

ROOT = Path(__file__).resolve().parents[2]

# LeNet on the images that ship, a few steps only.
SMALL_RUN = [
    "--model=lenet",
    "--data=fashion_mnist",
    "--use_gpu=False",
    "--num_workers=0",
    "--batch_size=32",
    "--eval_batch_size=500",
    "--log_period=2",
    "--calibration_batches=2",
    "--verify_images=64",
]


class DropoutNet(nn.Layer):
    """Draws random numbers, keeps running statistics, and is quick."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2D(1, 4, 5, stride=4),
            nn.BatchNorm2D(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(144, 10),
        )

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def small_config(tmp_path):
    """Makes a TrainConfig for DropoutNet on a few images."""

    def make(**flags) -> TrainConfig:
        values = {
            "model": "lenet",
            "data": "fashion_mnist",
            "pretrained_model": "none",
            "model_save_dir": str(tmp_path),
            "use_gpu": False,
            "num_workers": 0,
            "batch_size": 32,
            "eval_batch_size": 500,
            "lr": 0.05,
            "log_period": 2,
        }
        return TrainConfig(**{**values, **flags})

    return make


@pytest.fixture
def small_session():
    """Makes a Session that trains on the first 96 images and evaluates on 40."""

    def make(cfg: TrainConfig, progress: Progress | None = None) -> Session:
        folder = Path(cfg.model_save_dir)
        folder.mkdir(exist_ok=True)
        task, train_data = task_of_training(cfg)
        val_data = task.dataset("val")
        train_data.images, train_data.labels = train_data.images[:96], train_data.labels[:96]
        val_data.images, val_data.labels = val_data.images[:40], val_data.labels[:40]
        progress = progress or Progress()
        log = RunLog(folder, progress.log_bytes)
        checkpoints = CheckpointFolder(folder, cfg.keep_checkpoints)
        return Session(cfg, task, train_data, val_data, checkpoints, log, progress)

    return make


@pytest.fixture
def dropout_net():
    def make(seed: int = 3) -> DropoutNet:
        paddle.seed(seed)
        return DropoutNet()

    return make


def run_script(script: str, *words: str, timeout: int = 120) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="session")
def script():
    """Runs one of the scripts as a user does."""
    return run_script


@pytest.fixture
def small_run():
    return list(SMALL_RUN)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The folder of one whole run: a float epoch cut short, then QAT."""
    folder = tmp_path_factory.mktemp("run") / "out"
    done = run_script(
        "train.py",
        *SMALL_RUN,
        "--fp32_epochs=1",
        "--fp32_lr=0.01",
        "--lr=0.001",
        "--max_steps=60",
        f"--model_save_dir={folder}",
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder


@pytest.fixture
def read_rows():
    def read(folder: Path) -> list[dict]:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read


class OldFormat:
    """Writes weights as Paddle 1.x did, from the description of the format alone."""

    CODES = {
        "bool": 0,
        "int16": 1,
        "int32": 2,
        "int64": 3,
        "float16": 4,
        "float32": 5,
        "float64": 6,
        "uint8": 20,
        "int8": 21,
    }

    @staticmethod
    def varint(value: int) -> bytes:
        value &= 2**64 - 1
        out = b""
        while value >= 128:
            out += bytes([value % 128 + 128])
            value //= 128
        return out + bytes([value])

    def description(self, code: int, dims: list[int]) -> bytes:
        return b"\x08" + self.varint(code) + b"".join(b"\x10" + self.varint(n) for n in dims)

    def stream(self, description: bytes, content: bytes, levels: tuple[bytes, ...] = ()) -> bytes:
        head = struct.pack("<IQ", 0, len(levels))
        for level in levels:
            head += struct.pack("<Q", len(level)) + level
        return head + struct.pack("<Ii", 0, len(description)) + description + content

    def tensor(self, array: np.ndarray) -> bytes:
        description = self.description(self.CODES[str(array.dtype)], list(array.shape))
        return self.stream(description, array.tobytes())

    def folder(self, path: Path, arrays: dict[str, np.ndarray]) -> Path:
        path.mkdir()
        for name, array in arrays.items():
            (path / name).write_bytes(self.tensor(array))
        return path

    def tar(self, path: Path, arrays: dict[str, np.ndarray], top: str = "weights") -> Path:
        return self.tar_of(
            path, {f"{top}/{name}": self.tensor(array) for name, array in arrays.items()}
        )

    @staticmethod
    def tar_of(path: Path, files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
        with tarfile.open(path, "w", format=format) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path


@pytest.fixture
def old_format():
    """Writes weights as Paddle 1.x did."""
    return OldFormat()
