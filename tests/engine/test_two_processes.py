from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from engine.config import TrainConfig
from engine.loading import load_network
from engine.task import task_of_training

ROOT = Path(__file__).resolve().parents[2]


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node=2"]
    command += ["--backend", "gloo", "--log_dir", str(folder / "log")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, str(Path(__file__).with_name("two_processes.py")), str(folder), *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = launch(folder, "-1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranks(both: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(both / f"rank{rank}.npz")) for rank in (0, 1)]


def test_sums_and_batch_norm_averages_are_the_same_on_both(ranks):
    assert [int(found["rank"]) for found in ranks] == [0, 1]
    for found in ranks:
        assert found["sum"].tolist() == [2.0, 10.0]
        assert found["mean"].tolist() == [3.0] * 3
        assert found["variance"].tolist() == [5.0] * 3


def test_both_hold_the_same_weights_and_scales_after_training(ranks):
    names = [name for name in ranks[0] if name.startswith("net/")]
    assert any("_act_quant" in name for name in names)
    for name in names:
        np.testing.assert_array_equal(ranks[0][name], ranks[1][name], err_msg=name)


def test_each_image_is_counted_once_when_they_do_not_divide_evenly(both):
    summary = json.loads((both / "out" / "summary.json").read_text())
    assert summary["num_images"] == 101
    cfg = TrainConfig(model="lenet", data="fashion_mnist", pretrained_model="none", use_pact=True)
    task, _ = task_of_training(cfg)
    net, _ = load_network(task, both / "out" / "best_model.pdparams")
    net.eval()
    data = task.dataset("val")
    images = np.stack([data[i][0] for i in range(101)])
    labels = np.array([data[i][1] for i in range(101)])
    logits = net(paddle.to_tensor(images)).numpy()
    assert summary["qat"]["top1"] == pytest.approx((logits.argmax(1) == labels).mean())


def test_only_one_process_writes(both):
    rows = (both / "out" / "metrics.jsonl").read_text().splitlines()
    splits = [json.loads(row)["split"] for row in rows]
    assert splits == ["train", "train", "train", "val"]
    assert "qat epoch 0" in (both / "log" / "workerlog.0").read_text()
    assert "qat epoch 0" not in (both / "log" / "workerlog.1").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_the_job(rank, tmp_path):
    done = launch(tmp_path, str(rank))
    assert done.returncode != 0
    log = (tmp_path / "log" / f"workerlog.{rank}").read_text()
    assert "error: train/x.jpg is cut" in log
    assert "Traceback" not in log
