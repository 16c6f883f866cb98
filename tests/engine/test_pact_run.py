from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

from engine.config import TrainConfig
from engine.trainer import Job
from engine.weights import load_weights
from models import build_model

FLAGS = {
    "model": "lenet",
    "data": "fashion_mnist",
    "use_gpu": False,
    "num_workers": 0,
    "batch_size": 32,
    "eval_batch_size": 200,
    "lr": 0.01,
    "verify_images": 32,
    "calibration_batches": 2,
    "use_pact": True,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A float LeNet that calibration can measure."""
    path = str(tmp_path_factory.mktemp("weights") / "lenet.pdparams")
    paddle.seed(0)
    paddle.save(build_model("lenet", 10, 1, 28).state_dict(), path)
    return path


def run(folder, **flags) -> dict[str, float]:
    """Trains LeNet and returns the alpha of each layer."""
    job = Job(TrainConfig(**{**FLAGS, "model_save_dir": str(folder), **flags}))
    val_data = job.session.val_data
    val_data.images, val_data.labels = val_data.images[:64], val_data.labels[:64]
    assert job.run() == 0
    state = load_weights(folder / "latest.pdparams")
    return {
        name: np.asarray(value).item()
        for name, value in state.items()
        if name.endswith("_act_quant.preprocess.alpha") and not name.startswith("train_state/")
    }


@pytest.mark.parametrize("init", ["reference", "calibrated"])
def test_ten_steps_of_train_py_move_every_alpha(init, weights, tmp_path):
    flags = {"pact_init": init, "pretrained_model": weights}
    one = run(tmp_path / "one", max_steps=1, **flags)
    ten = run(tmp_path / "ten", max_steps=10, **flags)
    assert len(one) == len(ten) == 5
    for name, alpha in ten.items():
        assert abs(alpha - one[name]) > 1e-5 * one[name]
        # The reference starts at 100, which a calibrated alpha of this network never comes near.
        assert (alpha > 90) == (init == "reference")
    stored = json.loads((tmp_path / "ten" / "run.json").read_text())["quantization"]
    assert (stored["pact_init"], stored["activation_preprocess_type"]) == (init, "PACT")


def test_a_resumed_run_goes_on_from_its_alphas(weights, tmp_path):
    flags = {
        "pretrained_model": weights,
        "pact_init": "calibrated",
        "ce_test": True,
        "total_images": 3200,
    }
    run(tmp_path / "cut", max_steps=3, **flags)
    # Another number of calibration batches would give other alphas, if it were calibrated again.
    resumed = run(tmp_path / "cut", max_steps=6, resume="auto", calibration_batches=1, **flags)
    whole = run(tmp_path / "whole", max_steps=6, **flags)
    assert resumed == pytest.approx(whole, rel=1e-5)


def test_random_weights_are_not_calibrated_and_alpha_starts_with_what_flows_in_training(
    tmp_path, capsys
):
    """In evaluation mode a BatchNorm without statistics passes on next to nothing, and an alpha
    from there clips all that training has to say."""
    folder = tmp_path / "random"
    alphas = run(
        folder,
        model="mobilenet_v3_small_x0_35",
        pretrained_model="none",
        pact_init="calibrated",
        image_size=32,
        max_steps=3,
    )
    assert "random weights: activation scales start with the first batch" in capsys.readouterr().out
    inner = [value for name, value in alphas.items() if "se" not in name]
    assert 0.1 < min(inner) and max(alphas.values()) < 100
    assert json.loads((folder / "summary.json").read_text())["verified"] is True
