"""A native library that crashes: one line, code 2; all other ends pass through."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def guarded(code: str, **options) -> subprocess.CompletedProcess:
    program = f"import os, sys, time\nfrom engine.crash_guard import *\nguard()\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE])
def test_a_crash_is_one_line_that_names_the_file(number):
    done = guarded(f"working_on('a.pdmodel'); working_on('b.onnx'); os.kill(os.getpid(), {number})")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: a native library crashed ({signal.Signals(number).name}) while it worked on "
        "b.onnx, which is damaged or hostile, or it does not suit this machine\n"
    )


def test_a_crash_before_any_file_blames_none():
    done = guarded("os.kill(os.getpid(), 4)")
    assert done.returncode == 2
    assert done.stderr == (
        "error: a native library crashed (SIGILL); it does not suit this machine\n"
    )


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_exit_codes_pass_through(code):
    assert guarded(f"print('out'); sys.exit({code})").returncode == code


def test_running_out_of_memory_says_so():
    done = guarded("os.kill(os.getpid(), 9)")
    assert done.returncode == 137 and "memory" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks for it of Linux")
def test_who_kills_the_command_kills_the_work(tmp_path):
    note = tmp_path / "pid"
    program = (
        "import os, time; from engine.crash_guard import guard; guard();"
        f"open({str(note)!r} + '.tmp', 'w').write(str(os.getpid()));"
        f"os.rename({str(note)!r} + '.tmp', {str(note)!r}); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    end = time.monotonic() + 30
    while not note.exists() and time.monotonic() < end:
        time.sleep(0.02)
    child = int(note.read_text())
    assert child != process.pid
    process.kill()
    process.wait()
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # ended, and nobody has asked
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_a_model_that_no_engine_can_run_is_one_line(finished_run, tmp_path, script):
    from quant.paddle_format import read_program

    prefix = finished_run / "inference_model" / "qat_model"
    program = read_program(str(prefix))
    strides = [
        attr
        for op in program.blocks[0].ops
        if op.type == "conv2d"
        for attr in op.attrs
        if attr.name == "strides"
    ]
    assert strides
    for attr in strides:
        attr.ints[:] = [0, 0]
    broken = tmp_path / "broken"
    broken.with_suffix(".pdmodel").write_bytes(program.SerializeToString())
    broken.with_suffix(".pdiparams").write_bytes(prefix.with_suffix(".pdiparams").read_bytes())
    done = script(
        "eval.py", str(broken), "--model=lenet", "--data=fashion_mnist", "--max_images=10"
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.fullmatch(r"error: .*broken.* (does not run|crashed) .*\n", done.stderr)


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_the_work(number, code):
    program = (
        "import signal, time; from engine.crash_guard import guard; guard()\n"
        "try:\n print('ready', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: raise SystemExit(130)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == code
