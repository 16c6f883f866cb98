"""``train.py`` and the weights that it starts from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
import safetensors.numpy

from engine.config import EvalConfig, TrainConfig
from engine.errors import EngineError
from engine.evaluate import run_evaluation
from engine.loading import load_network
from engine.matching import load_into
from engine.task import task_of_file, task_of_training
from engine.trainer import Job
from engine.weights import weights_size
from models import MobileNetV3, with_old_names

ROOT = Path(__file__).resolve().parents[2]
MODEL = "mobilenet_v3_small_x0_35"
SSLD = "MobileNetV3_large_x1_0_ssld_pretrained"
KINDS = ["folder", ".tar", ".pdparams", ".safetensors"]


@pytest.fixture
def write(old_format, tmp_path):
    """Writes weights as one of the KINDS and returns the path."""

    def put(name: str, state: dict[str, np.ndarray], kind: str) -> Path:
        path = tmp_path / (name if kind == "folder" else name + kind)
        if kind == "folder":
            old_format.folder(path, state)
        elif kind == ".tar":
            old_format.tar(path, state, top=name)
        elif kind == ".pdparams":
            paddle.save({k: paddle.to_tensor(v) for k, v in state.items()}, str(path))
        else:
            safetensors.numpy.save_file(state, str(path))
        return path

    return put


def weights_of(net) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def job(tmp_path):
    def make(given: Path | str, **flags) -> Job:
        values = {
            "model": MODEL,
            "data": "fashion_mnist",
            "image_size": 32,
            "pretrained_model": str(given),
            "use_gpu": False,
            "num_workers": 0,
            "model_save_dir": str(tmp_path / "out"),
        }
        return Job(TrainConfig(**{**values, **flags}))

    return make


def network(job: Job):
    return job.session.task.build_network()


def loaded(job: Job) -> dict[str, np.ndarray]:
    net = network(job)
    job._load_pretrained(net)
    return weights_of(net)


@pytest.mark.parametrize("names", ["old", "new"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_with_either_names(job, write, kind, names, tmp_path):
    task, _ = task_of_training(
        TrainConfig(model=MODEL, data="fashion_mnist", image_size=32, pretrained_model="none")
    )
    state = weights_of(task.build_network())
    path = write("w", with_old_names(state) if names == "old" else state, kind)
    found = loaded(job(path))
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    # The ending may be left out.
    if kind != "folder":
        assert set(loaded(job(tmp_path / "w"))) == set(state)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_evaluated(job, write, tmp_path, kind, capsys):
    state = weights_of(network(job("none")))
    path = write("w", with_old_names(state), kind)
    common = {"model": MODEL, "data": "fashion_mnist", "image_size": 32, "use_gpu": False}
    output = tmp_path / "eval.json"
    cfg = EvalConfig(**common, path=str(path), num_workers=0, max_images=8, output=str(output))
    assert run_evaluation(cfg) == 0
    found = json.loads(output.read_text())
    assert found["num_images"] == 8 and found["size_bytes"] == weights_size(path)
    task = task_of_file(cfg, path, needs_network=True)
    net, quanter = load_network(task, path)
    assert quanter is None
    for name, value in weights_of(net).items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


@pytest.fixture
def of_other_classes(job, write):
    """Weights for 13 classes, where the data has ten."""
    state = weights_of(network(job("none", num_classes=13)))
    return write("w", with_old_names(state), ".tar"), state


def test_other_classes_end_the_run(job, of_other_classes):
    path, _ = of_other_classes
    with pytest.raises(EngineError, match="for 13 classes.* has 10 .*--allow_partial=True"):
        loaded(job(path))


def test_with_allow_partial_only_the_classifier_stays_random(job, of_other_classes, capsys):
    path, state = of_other_classes
    found = loaded(job(path, allow_partial=True))
    for name, value in found.items():
        assert np.array_equal(value, state[name]) == (not name.startswith("fc.")), name
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert "fc.weight is [1280, 13], in the network [1280, 10]" in warning
    assert "fc.bias is [13], in the network [10]" in warning
    loaded_of_all = f"{len(state) - 2} of the network's {len(state)} tensors were loaded"
    assert loaded_of_all in warning and "2 tensors do not match" in warning


def test_without_a_mismatch_allow_partial_warns_of_nothing(job, write, capsys):
    path = write("w", weights_of(network(job("none"))), ".pdparams")
    loaded(job(path, allow_partial=True))
    assert "warning" not in capsys.readouterr().err


def test_weights_of_another_network_are_refused_with_allow_partial_too(job, write):
    path = write("w", {"conv.weight": np.ones((3, 3), np.float32)}, ".tar")
    with pytest.raises(EngineError, match="checkpoint of another model: 0 of its 1 tensors"):
        loaded(job(path, allow_partial=True))


def test_path_that_is_no_weights_is_refused_before_a_run_is_moved(job, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for given in ("nix", "notes.txt"):
        with pytest.raises(EngineError, match="--pretrained_model: .*" + given):
            job(tmp_path / given)


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """A folder in the shape of ImageNet: a few images, labels up to 999."""
    folder = tmp_path / "data" / "ILSVRC2012"
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        lines = []
        for number, label in enumerate((0, 999, 5, 7)):
            image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / split / f"{number}.jpg"), image)
            lines.append(f"{split}/{number}.jpg {label}\n")
        (folder / f"{split}_list.txt").write_text("".join(lines))
    return folder


def train_here(folder: Path, *words: str) -> subprocess.CompletedProcess:
    small = ["--max_steps=1", "--batch_size=4", "--verify_images=4", "--image_size=32"]
    data = f"--data_dir={folder / 'data' / 'ILSVRC2012'}"
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), data, "--num_workers=0", *small, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


REFERENCE = "--lr=0.001 --use_pact=True --num_epochs=30 --l2_decay=2e-5 --ls_epsilon=0.1".split()


def test_reference_command_without_the_weights_says_which_file_to_put_where(imagenet, tmp_path):
    done = train_here(tmp_path, *REFERENCE)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{SSLD}.tar" in error and str(tmp_path) in error


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".tar", "folder"])
def test_reference_command_finds_the_weights_in_the_current_folder(imagenet, tmp_path, write, kind):
    net = MobileNetV3("large", 1.0, 1000)
    state = weights_of(net)
    write(SSLD, with_old_names(state), kind)
    done = train_here(tmp_path, *REFERENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"weights: {SSLD}" in done.stdout
    start = paddle.load(str(tmp_path / "output_models" / "fp32_model.pdparams"))
    assert load_into(net, {k: v.numpy() for k, v in start.items()}, "start").mismatches == []
    for name, value in state.items():
        np.testing.assert_array_equal(start[name].numpy(), value, err_msg=name)
    summary = json.loads((tmp_path / "output_models" / "summary.json").read_text())
    assert summary["model"] == "mobilenet_v3" and summary["verified"] is True


def test_hostile_weights_are_one_line_and_code_2(imagenet, tmp_path, old_format):
    marker = tmp_path / "marker"
    code = b"cos\nsystem\n(S'touch " + bytes(marker) + b"'\ntR."
    old_format.tar_of(tmp_path / f"{SSLD}.tar", {"w/conv1_weights": code})
    done = train_here(tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "conv1_weights in it is no tensor" in error
    assert not marker.exists()
