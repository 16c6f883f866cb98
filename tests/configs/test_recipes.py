from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import paddle
import pytest
from paddle import nn

from engine.config import TrainConfig, load_config, quant_config
from models import build_model, model_info
from quant import QAT

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(ROOT.glob("configs/*.yaml"))
IMAGENET = [path for path in RECIPES if path.name != "lenet_fashion_mnist.yaml"]
# VGG16 is only read: its 138 million weights take minutes and gigabytes, and no other code.
RUNNABLE = [path for path in IMAGENET if path.name != "vgg16.yaml"]
by_name = {"ids": lambda path: path.stem}

# Where a recipe differs from a command of the reference, it says so in its name.
PUBLISHED = {
    "mobilenet_v1": ["--model=mobilenet_v1"],
    "mobilenet_v3_large_ssld_pact": [
        "--lr=0.001", "--use_pact=True", "--num_epochs=30", "--l2_decay=2e-5", "--ls_epsilon=0.1",
    ],
}  # fmt: skip


def recipe(path: Path, *words: str) -> TrainConfig:
    return load_config(TrainConfig, ["--config", str(path), *words])


def test_each_model_of_the_reference_has_a_recipe():
    models = {model_info(recipe(path).model).name for path in RECIPES}
    wanted = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "mobilenet_v3_small_x1_0")
    wanted += ("resnet50", "vgg16", "lenet")
    assert models == {model_info(name).name for name in wanted}


@pytest.mark.parametrize("path", RECIPES, **by_name)
def test_it_can_be_read_and_makes_a_quantizer(path):
    QAT(quant_config(recipe(path)))


@pytest.mark.parametrize("path", RECIPES, **by_name)
def test_its_head_names_its_command_and_says_that_imagenet_was_not_run(path):
    head = path.read_text().split("\nmodel:")[0]
    assert f"#   python train.py --config configs/{path.name}" in head.splitlines()
    if path in IMAGENET:
        assert "Not run on ImageNet by this project yet" in head


def test_no_two_write_into_one_folder():
    folders = [recipe(path).model_save_dir for path in IMAGENET]
    assert folders == [f"output_models/{path.stem}" for path in IMAGENET]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row_is_the_command_of_the_reference(name):
    ours, command = recipe(ROOT / f"configs/{name}.yaml"), load_config(TrainConfig, PUBLISHED[name])
    apart = {"config", "model_save_dir"}
    for flag in vars(command):
        if flag not in apart:
            assert getattr(ours, flag) == getattr(command, flag), flag


def run(path: Path, folder: Path, *words: str) -> dict:
    """Two steps of a recipe as a user would try it out; returns summary.json."""
    done = subprocess.run(
        [
            sys.executable, "train.py", "--config", str(path), "--max_steps=2", "--use_gpu=False",
            "--num_workers=0", "--verify_images=8", f"--model_save_dir={folder}", *words,
        ],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "summary.json").read_text())


def weights(model: str, folder: Path) -> Path:
    """Random weights with BatchNorm statistics that fit them, in a file.

    Without such statistics, evaluation (and so calibration) sees other values than training does.
    """
    paddle.seed(0)
    net = build_model(model, 4)
    for layer in net.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._momentum = 0.0  # the statistics of the next batch replace the old ones
    with paddle.no_grad():
        net(paddle.rand([16, 3, 64, 64]) * 4 - 2)
    path = folder / "weights.pdparams"
    paddle.save(net.state_dict(), str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNNABLE, **by_name)
def test_it_runs_for_two_steps_on_a_folder_of_imagenets_shape(path, imagenet_folder, tmp_path):
    summary = run(
        path,
        tmp_path / "out",
        f"--data_dir={imagenet_folder}",
        f"--pretrained_model={weights(recipe(path).model, tmp_path)}",
        "--image_size=64",
        "--batch_size=8",
        "--calibration_batches=2",
    )
    assert summary["num_images"] == 12
    assert summary["verified"] is True


@pytest.mark.slow
def test_the_recipe_of_the_demo_runs_for_two_steps(tmp_path):
    summary = run(ROOT / "configs/lenet_fashion_mnist.yaml", tmp_path, "--fp32_epochs=1")
    assert summary["verified"] is True
