"""The examples as a user runs them: they give the answer of the trained network."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import InputConfig, build_dataset
from data.imagenet import ImageListDataset
from engine.config import ExportConfig
from engine.loading import load_network
from engine.task import task_of_file

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TRAINING = (
    "--model=lenet --data=fashion_mnist --pretrained_model=none --use_gpu=False --num_workers=0 "
    "--max_steps=60 --batch_size=32 --eval_batch_size=500 --verify_images=32 --lr=0.05 "
    "--deploy_target=onnxruntime"
).split()


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    values = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=values, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "out"
    done = run("train.py", *TRAINING, f"--model_save_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def photo(trained) -> Path:
    """An image of the evaluation set, as a file."""
    config = task_of_file_in(trained).input
    dataset = build_dataset("fashion_mnist", "val", config, None, 0)
    path = trained / "photo.png"
    cv2.imwrite(str(path), np.asarray(dataset.images[3]))
    return path


def task_of_file_in(folder: Path):
    cfg = ExportConfig(checkpoint=str(folder / "best_model.pdparams"), output="x", use_gpu=False)
    return task_of_file(cfg, folder / "best_model.pdparams", needs_network=True)


def expected(folder: Path, photo: Path) -> list[tuple[str, float]]:
    """The five likeliest classes of the trained network, with their probabilities."""
    import paddle

    task = task_of_file_in(folder)
    net, _ = load_network(task, folder / "best_model.pdparams")
    net.eval()
    image = cv2.imread(str(photo), cv2.IMREAD_GRAYSCALE).astype(np.float64)
    image = (image / 255 - task.input.mean[0]) / task.input.std[0]
    logits = net(paddle.to_tensor(image[None, None].astype(np.float32))).numpy()[0]
    odds = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    names = task.class_names
    return [(names[i], odds[i]) for i in np.argsort(-odds)[:5]]


def answers(text: str) -> list[tuple[str, float]]:
    rows = [line.split("%  ") for line in text.strip().splitlines() if "%  " in line]
    return [(name, float(share) / 100) for share, name in rows]


@pytest.mark.int8_products
@pytest.mark.parametrize("program", ["run_onnxruntime.py", "run_openvino.py"])
def test_programs_for_onnx_give_the_answer_of_the_network(program, trained, photo):
    if "openvino" in program:
        pytest.importorskip("openvino")
    model = trained / "inference_model" / "qat_model.onnx"
    done = run(f"examples/{program}", str(model), str(photo))
    assert done.returncode == 0, done.stderr
    for (name, share), (want, wanted) in zip(answers(done.stdout), expected(trained, photo)):
        assert name == want and share == pytest.approx(wanted, abs=2e-3)


def test_the_program_for_paddle_gives_the_answer_of_the_network(photo, tmp_path):
    words = [word for word in TRAINING if "deploy_target" not in word]
    done = run("train.py", *words, "--deploy_target=onednn", f"--model_save_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    prefix = tmp_path / "inference_model" / "qat_model"
    done = run("examples/run_paddle.py", str(prefix), str(photo))
    assert done.returncode == 0, done.stderr
    for (name, share), (want, wanted) in zip(answers(done.stdout), expected(tmp_path, photo)):
        assert name == want and share == pytest.approx(wanted, abs=2e-3)


@pytest.mark.slow
def test_the_cpp_program_gives_the_answer_of_the_network(trained, photo, tmp_path):
    openvino = pytest.importorskip("openvino")
    folder = Path(openvino.__path__[0])
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no C++ compiler or no cmake")
    if not (folder / "include").is_dir():
        pytest.skip("this OpenVINO has no headers")
    build = [
        ["cmake", "-S", str(EXAMPLES), "-B", str(tmp_path), f"-DOpenVINO_DIR={folder / 'cmake'}"],
        ["cmake", "--build", str(tmp_path)],
    ]
    for command in build:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    task = task_of_file_in(trained)
    image = cv2.imread(str(photo), cv2.IMREAD_GRAYSCALE).astype(np.float64)
    image = (image / 255 - task.input.mean[0]) / task.input.std[0]
    image.astype(np.float32).tofile(tmp_path / "image.f32")
    model = trained / "inference_model" / "qat_model.onnx"
    words = [str(tmp_path / "openvino"), str(model), str(tmp_path / "image.f32"), "1", "28", "28"]
    libraries = str(folder / "libs")
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    names = [task.class_names[int(row[0])] for row in rows]
    assert names == [name for name, _ in expected(trained, photo)]


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"interpolation": "bicubic"},
        {"interpolation": "nearest"},
        {"interpolation": "area"},
        {"interpolation": "lanczos"},
        {"antialias": True},
        {"antialias": True, "interpolation": "bicubic"},
    ],
    ids=str,
)
def test_the_examples_prepare_an_image_as_evaluation_does(kind, tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.integers(60, 200, (30, 40, 3), np.uint8)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), cv2.resize(blocks, (640, 480)))
    config = InputConfig(image_size=96, resize_size=110, **kind)
    dataset = ImageListDataset(
        tmp_path, ["photo.png"], np.zeros(1, np.int64), train=False, input_config=config, seed=0,
        num_classes=1,
    )  # fmt: skip
    spec = importlib.util.spec_from_file_location("images", EXAMPLES / "images.py")
    images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(images)
    found = images.load_image(str(path), {"input": dataclasses.asdict(config)})
    # Two of 255 steps: the two libraries that antialias round differently.
    tolerance = 2.01 / 255 / 0.224 if config.antialias else 1e-5
    np.testing.assert_allclose(found[0], dataset[0][0], atol=tolerance)
