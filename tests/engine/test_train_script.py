from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest

from engine.config import TrainConfig
from engine.trainer import Job
from quant import QAT


def names(folder):
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_run_leaves_every_file_that_is_promised(finished_run):
    assert names(finished_run) >= {
        "epoch_0.pdparams",
        "epoch_0.pdopt",
        "best_model.pdparams",
        "best_model.pdopt",
        "latest.pdparams",
        "fp32_model.pdparams",
        "metrics.jsonl",
        "summary.json",
        "run.json",
        "curves.png",
    }
    assert names(finished_run / "inference_model") == {
        "qat_model.pdmodel",
        "qat_model.pdiparams",
        "fp32_model.pdmodel",
        "fp32_model.pdiparams",
    }
    assert not [name for name in names(finished_run) if name.endswith(".tmp")]


def test_the_summary_has_every_stage_and_they_agree(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["model"] == "lenet"
    for stage in ("fp32", "qat", "int8"):
        assert 0 <= summary[stage]["top1"] <= summary[stage]["top5"] <= 1
    assert summary["verified"] is True
    assert summary["agreement_int8_qat"] >= 0.999
    assert summary["int8"]["top1"] == pytest.approx(summary["qat"]["top1"], abs=0.003)
    assert summary["fp32_exported"]["top1"] == pytest.approx(summary["fp32"]["top1"], abs=0.001)
    files = finished_run / "inference_model"
    for stage, name in (("fp32", "fp32_model"), ("int8", "qat_model")):
        size = (files / f"{name}.pdiparams").stat().st_size
        assert summary["sizes_bytes"][stage] == size
    assert summary["sizes_bytes"]["int8"] < 0.3 * summary["sizes_bytes"]["fp32"]


def test_both_stages_are_in_the_metrics(finished_run, read_rows):
    rows = read_rows(finished_run)
    assert [row["stage"] for row in rows] == sorted(row["stage"] for row in rows)
    assert {(row["stage"], row["split"]) for row in rows} == {
        (stage, split) for stage in ("fp32", "qat") for split in ("train", "val")
    }


def test_piped_output_is_plain_lines_and_no_traceback(finished_run):
    text = (finished_run / "stdout.txt").read_text()
    assert "qat epoch 0 step 60: loss" in text
    assert "done: " in text.splitlines()[-1]
    assert "\r" not in text
    assert "Traceback" not in (finished_run / "stderr.txt").read_text()


def test_run_json_says_what_the_checkpoints_are(finished_run):
    run = json.loads((finished_run / "run.json").read_text())
    assert (run["model"], run["num_classes"], run["data"]) == ("lenet", 10, "fashion_mnist")
    assert run["input"]["image_size"] == 28 and run["input"]["channels"] == 1
    assert run["quantization"]["weight_quantize_type"] == "channel_wise_abs_max"
    assert run["recipe"]["fp32_epochs"] == 1 and run["recipe"]["max_steps"] == 60
    assert run["versions"]["paddle"] == paddle.__version__


def job(folder, **flags):
    values = {
        "model": "lenet",
        "data": "fashion_mnist",
        "pretrained_model": "none",
        "use_gpu": False,
        "num_workers": 0,
        "batch_size": 32,
        "eval_batch_size": 500,
        "max_steps": 2,
        "verify_images": 32,
        "model_save_dir": str(folder),
    }
    found = Job(TrainConfig(**{**values, **flags}))
    val_data = found.session.val_data
    val_data.images, val_data.labels = val_data.images[:64], val_data.labels[:64]
    return found


def test_a_file_that_is_not_the_network_ends_with_code_1(tmp_path, monkeypatch, capsys):
    save = QAT.save_quantized_model

    def save_another(self, net, path, input_spec):
        weight = net.fc[2].weight
        original = weight.clone()
        weight.set_value(weight.flip(axis=1))
        receipt = save(self, net, path, input_spec)
        weight.set_value(original)
        return receipt

    monkeypatch.setattr(QAT, "save_quantized_model", save_another)
    assert job(tmp_path).run() == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "qat_model.pdmodel is not the network" in errors[0]
    assert "done" not in captured.out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verified"] is False and summary["int8"] is None
    assert (tmp_path / "inference_model" / "qat_model.pdmodel").exists()


def test_a_network_that_was_never_float_has_no_float_figures(tmp_path):
    assert job(tmp_path).run() == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["fp32"] is None and summary["fp32_exported"] is None
    assert summary["qat"] is not None
    assert summary["sizes_bytes"]["fp32"] > summary["sizes_bytes"]["int8"]


def test_a_new_run_sets_an_earlier_one_aside(tmp_path, capsys):
    job(tmp_path).run()
    before = (tmp_path / "best_model.pdparams").read_bytes()
    capsys.readouterr()
    again = job(tmp_path, seed=5)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "earlier_1" in error
    assert (tmp_path / "earlier_1" / "best_model.pdparams").read_bytes() == before
    assert (tmp_path / "earlier_1" / "inference_model" / "qat_model.pdmodel").exists()
    assert not (tmp_path / "best_model.pdparams").exists()
    again.run()
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["seed"] == 5


def test_resuming_with_nothing_there_begins(tmp_path, capsys):
    job(tmp_path, resume="auto")
    assert "nothing to resume" in capsys.readouterr().out


def test_a_resumed_run_keeps_the_figures_of_the_float_network(finished_run, tmp_path):
    resumed = Job(
        TrainConfig(
            model="lenet",
            data="fashion_mnist",
            use_gpu=False,
            num_workers=0,
            batch_size=32,
            fp32_epochs=1,
            max_steps=61,
            verify_images=32,
            eval_batch_size=500,
            resume=str(finished_run / "latest.pdparams"),
            model_save_dir=str(tmp_path),
        )
    )
    assert resumed.run() == 0
    before = json.loads((finished_run / "summary.json").read_text())
    after = json.loads((tmp_path / "summary.json").read_text())
    assert after["fp32"] == before["fp32"]
    assert after["sizes_bytes"] == before["sizes_bytes"]
    assert (tmp_path / "best_model.pdparams").exists()


EVERYTHING = [
    "--fp32_epochs=1",
    "--fp32_lr=0.02",
    "--num_epochs=2",
    "--lr=0.005",
    "--lr_strategy=cosine_decay",
    "--warmup_epochs=0.5",
    "--batch_size=100",
    "--accumulate_steps=4",
    "--ema_decay=0.9",
    "--distill",
    "--distill_temperature=2",
    "--use_pact=True",
    "--pact_init=calibrated",
    "--save_steps=2",
]


@pytest.mark.slow
def test_a_run_that_was_killed_within_an_epoch_goes_on_as_if_it_had_not_been(
    tmp_path, script, small_run, read_rows
):
    words = [*small_run, *EVERYTHING]
    done = script("train.py", *words, f"--model_save_dir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr

    cut = tmp_path / "cut"
    words.append(f"--model_save_dir={cut}")
    process = subprocess.Popen(
        [sys.executable, "train.py", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if line.startswith("qat epoch 1 step "):
            break
    process.kill()
    process.wait()
    assert not (cut / "epoch_1.pdparams").exists()
    done = script("train.py", *words, "--resume=auto")
    assert done.returncode == 0 and "going on from" in done.stdout
    for name in ("epoch_1", "best_model", "latest", "fp32_model"):
        a, b = (paddle.load(str(f / f"{name}.pdparams")) for f in (tmp_path / "whole", cut))
        assert set(a) == set(b)
        for key in set(a) - {"train_state/progress"}:  # which holds the length of a log with times
            np.testing.assert_array_equal(a[key].numpy(), b[key].numpy(), err_msg=key)
    measured = ("stage", "epoch", "step", "split", "loss", "top1", "top5", "lr")
    logs = [
        [[row[key] for key in measured] for row in read_rows(folder)]
        for folder in (tmp_path / "whole", cut)
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path, script, small_run, read_rows):
    words = [*small_run, "--pretrained_model=none", "--num_epochs=3", "--batch_size=2000"]
    assert script("train.py", *words, f"--model_save_dir={tmp_path / 'whole'}").returncode == 0

    cut = tmp_path / "cut"
    words.append(f"--model_save_dir={cut}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "train.py", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    deadline = time.monotonic() + 100
    while not (cut / "epoch_1.pdparams").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "summary.json").exists()
    done = script("train.py", *words, "--resume=auto")
    assert done.returncode == 0 and "going on from" in done.stdout
    for name in ("epoch_2", "best_model"):
        a, b = (paddle.load(str(f / f"{name}.pdparams")) for f in (tmp_path / "whole", cut))
        for key in a:
            np.testing.assert_array_equal(a[key].numpy(), b[key].numpy(), err_msg=key)


BAD_COMMANDS = {
    "unknown flag": (["--modle=lenet"], "--modle"),
    "unknown model": (["--model=lenett"], "lenet"),
    "no such folder": (["--data_dir=/nonexistent"], "/nonexistent"),
    "unwritable folder": (["--model_save_dir=/proc/x"], "--model_save_dir"),
    "no such weights": (["--pretrained_model=nix.pdparams"], "nix.pdparams"),
    "labels beyond the classes": (["--num_classes=3"], "0 to 2"),
    "nothing to resume": (["--resume=nix.pdparams"], "nix.pdparams"),
    "image too small": (["--image_size=4"], "image_size"),
}


@pytest.mark.parametrize("words,told", BAD_COMMANDS.values(), ids=BAD_COMMANDS.keys())
def test_a_command_that_cannot_work_is_one_line_and_code_2(
    words, told, script, small_run, tmp_path
):
    done = script(
        "train.py",
        *small_run,
        "--pretrained_model=none",
        "--max_steps=1",
        f"--model_save_dir={tmp_path}",
        *words,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and told in errors[0]


@pytest.mark.parametrize(
    "flags,told",
    [
        ({"batch_size": 16}, "batch_size"),
        ({"weight_bits": 4}, "quantization.weight_bits"),
        ({"seed": 1}, "seed"),
        ({"accumulate_steps": 2}, "accumulate_steps"),
        ({"warmup_epochs": 0.5}, "warmup_epochs"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"fp32_epochs": 1}, "fp32_epochs"),
        ({"amp": True}, "amp"),
    ],
)
def test_a_resumed_run_must_not_change_what_it_is(flags, told, tmp_path):
    job(tmp_path).run()
    with pytest.raises(ValueError, match=f"--resume: .*{told} is .* began with"):
        job(tmp_path, resume="auto", **flags)


def test_an_image_that_is_cut_is_one_line_though_a_worker_met_it(tmp_path, script, small_run):
    import cv2

    folder = tmp_path / "data"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        lines = []
        for i in range(12):
            cv2.imwrite(str(folder / split / f"{i}.jpg"), np.full((40, 40, 3), 20 * i, np.uint8))
            lines.append(f"{split}/{i}.jpg {i % 2}\n")
        (folder / f"{split}_list.txt").write_text("".join(lines))
    broken = folder / "train" / "11.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    done = script(
        "train.py",
        *small_run,
        "--data=imagenet",
        f"--data_dir={folder}",
        "--pretrained_model=none",
        "--batch_size=4",
        "--num_workers=2",
        f"--model_save_dir={tmp_path / 'out'}",
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "11.jpg" in errors[0]


def test_a_run_starts_from_the_weights_that_it_is_given(finished_run, tmp_path, capsys):
    weights = finished_run / "fp32_model.pdparams"
    assert job(tmp_path, pretrained_model=str(weights)).run() == 0
    start, given = (paddle.load(str(path)) for path in (tmp_path / "fp32_model.pdparams", weights))
    for key in given:
        np.testing.assert_array_equal(start[key].numpy(), given[key].numpy(), err_msg=key)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["fp32"]["top1"] > 0.4 and summary["num_images"] == 64
