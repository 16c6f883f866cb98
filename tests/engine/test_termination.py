"""SIGTERM: what was trained is saved, the process says so, and the run goes on to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from engine import termination
from engine.checkpoint import load_latest
from engine.files import own_folder

ROOT = Path(__file__).resolve().parents[2]


PROGRAM = """
import os, signal
from engine.cli import run
from engine.termination import deferred, handled, requested

def main():
    with handled(lambda: "(go on there)"):
        {work}

run(main)
"""


def ending(work: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work=work)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = [line for line in done.stderr.splitlines() if "SIGTERM" in line]
    assert "Traceback" not in done.stderr and len(told) == 1, done.stderr
    return done.returncode, told[0], done.stdout


def test_the_signal_ends_what_can_be_done_again_at_once():
    work = "os.kill(os.getpid(), 15); print('after')"
    assert ending(work) == (143, "stopped by SIGTERM (go on there)", "")


def test_it_ends_where_an_exception_would_get_lost():
    work = "import weakref; weakref.finalize(main, os.kill, os.getpid(), 15)(); print('after')"
    assert ending(work) == (143, "stopped by SIGTERM (go on there)", "")


def test_within_a_deferring_block_it_waits_however_often_it_comes():
    work = """
        try:
            with deferred():
                os.kill(os.getpid(), 15)
                os.kill(os.getpid(), 15)
                print("reached", requested())
        finally:
            os.kill(os.getpid(), 15)
            print("the way out")
    """
    code, told, printed = ending(work.strip())
    assert (code, told) == (143, "stopped by SIGTERM (go on there)")
    assert printed == "reached True\nthe way out\n"


def test_afterwards_the_handler_is_the_one_from_before():
    before = signal.getsignal(signal.SIGTERM)
    with termination.handled(str):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) == before


def begin(folder: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "train.py", *words, f"--model_save_dir={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# What stands in the output when the signal is sent, and what the message then says.
MOMENTS = {
    "within an epoch": ("qat epoch 0 step 4:", "of the qat stage"),
    "in the float stage": ("fp32 epoch 0 step 2:", "of the fp32 stage"),
    "before evaluation": ("qat epoch 0 step 10:", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("line,told", MOMENTS.values(), ids=MOMENTS.keys())
def test_a_run_that_is_told_to_end_goes_on_as_if_it_had_not_been(
    line, told, tmp_path, script, small_run
):
    words = [*small_run, "--batch_size=200", "--fp32_epochs=1", "--fp32_lr=0.01", "--lr=0.01"]
    words += ["--num_epochs=2", "--save_steps=1000"]
    whole = tmp_path / "whole"
    done = script("train.py", *words, f"--model_save_dir={whole}")
    assert done.returncode == 0, done.stderr

    cut = tmp_path / "cut"
    process = begin(cut, *words)
    for text in process.stdout:
        if text.startswith(line):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == termination.EXIT_TERMINATED, errors
    (message,) = [text for text in errors.splitlines() if "SIGTERM" in text]
    assert message.startswith("stopped by SIGTERM") and told in message
    assert "latest.pdparams has what was trained; --resume" in message
    assert "Traceback" not in errors

    done = script("train.py", *words, f"--model_save_dir={cut}", "--resume=auto")
    assert done.returncode == 0 and "going on from" in done.stdout, done.stderr
    for name in ("epoch_0", "epoch_1", "best_model", "fp32_model"):
        a, b = (paddle.load(str(folder / f"{name}.pdparams")) for folder in (whole, cut))
        for key in a:
            np.testing.assert_array_equal(a[key].numpy(), b[key].numpy(), err_msg=key)


def test_nothing_was_trained_yet(tmp_path, small_run):
    process = begin(tmp_path, *small_run, "--pretrained_model=none")
    for text in process.stdout:
        if text.startswith("lenet: "):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == termination.EXIT_TERMINATED
    assert "stopped by SIGTERM" in errors and "Traceback" not in errors


def test_two_runs_in_one_folder(tmp_path, small_run, script):
    process = begin(tmp_path, *small_run, "--pretrained_model=none")
    for text in process.stdout:
        if text.startswith("lenet: "):
            break
    done = script("train.py", *small_run, "--pretrained_model=none", f"--model_save_dir={tmp_path}")
    process.kill()
    process.communicate()
    assert done.returncode == 2
    assert "--model_save_dir" in done.stderr and "another run is writing" in done.stderr


def test_what_a_killed_run_left_half_written_goes_and_nothing_else(tmp_path):
    folder = tmp_path / "inference_model"
    folder.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [tmp_path / f".latest.pdparams.{gone.pid}.tmp", folder / f".a.pdmodel.{gone.pid}.tmp"]
    kept = [
        tmp_path / f".b.pdmodel.{os.getppid()}.tmp",  # of a process that runs
        tmp_path / ".tmp",
        tmp_path / ".notes.tmp",
        tmp_path / f"c.{gone.pid}.tmp",
    ]
    for path in (*left, *kept):
        path.write_text("half")
    (tmp_path / f".folder.{gone.pid}.tmp").mkdir()
    own_folder(tmp_path, "inference_model", "--model_save_dir")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_checkpoint_before_evaluation_says_so(tmp_path, small_config, small_session, dropout_net):
    """The signal comes while the epoch is evaluated: it is not trained again."""
    from engine import training
    from engine.checkpoint import FP32
    from engine.training import Stage, Trainer

    def stopped(net, batches):
        raise termination.Terminated

    stage = Stage(FP32, 1, 0.05, "cosine_decay")
    session = small_session(small_config())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(termination.Terminated):
        patch.setattr(training, "evaluate_network", stopped)
        Trainer(session, stage).run(dropout_net(), None)
    latest = load_latest(tmp_path / "latest.pdparams")
    assert (latest.progress.unevaluated, latest.progress.epoch) == (0, 1)
    net = dropout_net(seed=11)
    Trainer(small_session(small_config(), latest.progress), stage).run(net, latest)
    np.testing.assert_array_equal(net.body[5].weight.numpy(), latest.weights["body.5.weight"])
    assert (tmp_path / "fp32_model.pdparams").exists()
