"""The same command, the same weights: bit by bit, run to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]

FLAGS = [
    "--model=mobilenet_v3_small_x0_35",
    "--data=fashion_mnist",
    "--image_size=32",
    "--channels=1",
    "--use_gpu=False",
    "--fp32_epochs=1",
    "--fp32_lr=0.02",
    "--lr=0.005",
    "--batch_size=32",
    "--eval_batch_size=1000",
    "--max_steps=3",
    "--use_pact=True",
    "--ema_decay=0.9",
    "--verify_images=16",
]
CHECKPOINTS = ("fp32_model", "epoch_0", "best_model")


def train(folder: Path, *words: str, processes: int = 1) -> None:
    launcher = ["-m", "paddle.distributed.launch", f"--nproc_per_node={processes}"]
    launcher += ["--backend", "gloo", "--log_dir", str(folder / "log")]
    done = subprocess.run(
        [
            sys.executable,
            *(launcher if processes > 1 else []),
            "train.py",
            *FLAGS,
            *words,
            f"--model_save_dir={folder}",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def differing(a: Path, b: Path) -> list[str]:
    found = []
    for name in CHECKPOINTS:
        one, other = (load_weights(folder / f"{name}.pdparams") for folder in (a, b))
        assert set(one) == set(other)
        found += [f"{name}: {key}" for key in one if one[key].tobytes() != other[key].tobytes()]
    file = "inference_model/qat_model.pdiparams"
    if (a / file).read_bytes() != (b / file).read_bytes():
        found.append(file)
    return found


@pytest.mark.slow
def test_one_process_whatever_the_number_of_readers(tmp_path):
    train(tmp_path / "a", "--num_workers=0")
    train(tmp_path / "b", "--num_workers=3")
    assert differing(tmp_path / "a", tmp_path / "b") == []
    train(tmp_path / "c", "--num_workers=0", "--seed=1")
    assert differing(tmp_path / "a", tmp_path / "c")


@pytest.mark.slow
def test_two_processes(tmp_path):
    for name in "ab":
        train(tmp_path / name, "--num_workers=1", processes=2)
    assert differing(tmp_path / "a", tmp_path / "b") == []
