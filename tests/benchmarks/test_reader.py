from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_reads_every_image_and_writes_its_files(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(300, 400), (400, 300), (256, 256)]):
        noise = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        cv2.imwrite(str(images / f"{i}.jpg"), cv2.resize(noise, (width, height)))
    variants = ["ours", "ours_antialias", "paddle_cv2", "paddle_pil", "ours_loader", "torch"]
    command = [
        sys.executable, str(ROOT / "benchmarks" / "reader.py"), "--images", str(images),
        "--rounds", "1", "--output", str(tmp_path / "out"), "--variants", *variants,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "torch left out: --torch_python is not given" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["images"] == 3 and str(tmp_path) not in content["command"]
    assert [row["transform"] for row in content["rows"]] == ["train", "evaluate"]
    for row in content["rows"]:
        assert {"ours_over_paddle_cv2", "ours_antialias_over_paddle_pil", "ours_loader"} <= set(row)
        assert "torch" not in row
    assert (tmp_path / "out.png").stat().st_size > 1000 and (tmp_path / "out.csv").is_file()
