"""The four commands that users of the reference start from, word for word, on a tiny ImageNet."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from data.fashion_mnist import SAMPLE_DIR
from data.idx import read_idx
from models import build_model

ROOT = Path(__file__).resolve().parents[2]

PLAIN = "train.py --model=mobilenet_v1"
PACT = "train.py  --lr=0.001 --use_pact=True --num_epochs=30 --l2_decay=2e-5 --ls_epsilon=0.1"
LAUNCH = 'python -m paddle.distributed.launch --gpus="0,1,2,3" '
COMMANDS = {
    "plain": f"python {PLAIN}",
    "plain, four cards": LAUNCH + PLAIN,
    "pact": f"python {PACT}",
    "pact, four cards": LAUNCH + PACT,
}
# What makes them short; the default weights of mobilenet_v1 would have to be downloaded.
SHORT = "--max_steps 2 --batch_size 2 --image_size 64 --num_workers 0 --verify_images 4"
NO_WEIGHTS = "--pretrained_model none"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the code with a tiny ILSVRC2012 where that belongs, and weights of MobileNetV3."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "train.py", root)
    ignored = shutil.ignore_patterns("__pycache__", "fashion_mnist_sample", "ILSVRC2012")
    for package in ("data", "engine", "models", "quant"):
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    images = read_idx(SAMPLE_DIR / "t10k-images-idx3-ubyte.gz", 3)
    labels = read_idx(SAMPLE_DIR / "t10k-labels-idx1-ubyte.gz", 1).astype(int)
    labels[0] = 999  # so that there are a thousand classes, as in the weights
    folder = root / "data" / "ILSVRC2012"
    for split, chosen in (("train", range(24)), ("val", range(24, 32))):
        lines = []
        for i in chosen:
            name = f"{split}/n{labels[i]:08d}/{i}.JPEG"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            grey = cv2.resize(images[i], (90, 75))
            cv2.imwrite(str(folder / name), np.stack([grey, grey, 255 - grey], axis=2))
            lines.append(f"{name} {labels[i]}\n")
        (folder / f"{split}_list.txt").write_text("".join(lines))
    paddle.seed(0)
    net = build_model("mobilenet_v3", num_classes=1000)
    paddle.save(net.state_dict(), str(root / "MobileNetV3_large_x1_0_ssld_pretrained.pdparams"))
    # In an environment of scripts/setup_env.sh this stands in its site-packages.
    (root / "start").mkdir()
    shutil.copy(ROOT / "scripts" / "launch_without_gpu.py", root / "start" / "sitecustomize.py")
    return root


@pytest.mark.slow
@pytest.mark.skipif(paddle.device.cuda.device_count() > 0, reason="of a machine without a GPU")
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_runs_as_it_stands(name, project, tmp_path):
    added = f"{SHORT} --model_save_dir {tmp_path / 'out'}"
    if PLAIN in COMMANDS[name]:
        added += f" {NO_WEIGHTS}"
    words = shlex.split(f"{COMMANDS[name]} {added}")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(project / "start"),
    }
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-3000:]
    processes = 4 if LAUNCH in COMMANDS[name] else 1
    assert f", {processes} process(es)" in told
    assert len(re.findall(r"warning: .*; running on the CPU", told)) == 1

    run = json.loads((tmp_path / "out" / "run.json").read_text())
    is_pact = PACT in COMMANDS[name]
    assert run["model"] == ("mobilenet_v3" if is_pact else "mobilenet_v1")
    assert run["num_classes"] == 1000
    assert run["quantization"]["activation_preprocess_type"] == ("PACT" if is_pact else None)
    rows = [json.loads(line) for line in open(tmp_path / "out" / "metrics.jsonl")]
    assert rows[-1]["split"] == "val" and rows[-1]["step"] == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_images"] == 8
    for stage in ("qat", "int8"):
        assert 0 <= summary[stage]["top1"] <= summary[stage]["top5"] <= 1
    assert (summary["fp32"] is not None) == is_pact  # float weights were given
    files = tmp_path / "out" / "inference_model"
    ratio = summary["sizes_bytes"]["int8"] / summary["sizes_bytes"]["fp32"]
    assert (files / "qat_model.pdmodel").is_file() and ratio < 0.3
