from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from data import DataError
from engine.cli import run
from engine.config import TrainConfig, load_config
from engine.errors import EngineError
from models import ModelError
from quant import QuantError

ROOT = Path(__file__).resolve().parents[2]


def outcome(main, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        run(main)
    return caught.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize("family", [DataError, EngineError, ModelError, QuantError])
def test_our_errors_are_one_line_and_code_2(family, capsys):
    code, text = outcome(raising(family("--lr is x;\nallowed is y")), capsys)
    assert (code, text) == (2, "error: --lr is x; allowed is y\n")


def test_full_disk_names_the_path(capsys):
    error = OSError(errno.ENOSPC, "No space left on device", "out/epoch_0.pdparams")
    code, text = outcome(raising(error), capsys)
    assert (code, text) == (2, "error: out/epoch_0.pdparams: No space left on device\n")


def test_failed_rename_names_both_paths(capsys):
    error = PermissionError(errno.EACCES, "Permission denied", "a.tmp", None, "a")
    assert outcome(raising(error), capsys) == (2, "error: a.tmp -> a: Permission denied\n")


def test_path_that_cannot_be_opened(tmp_path, capsys):
    code, text = outcome(lambda: open(tmp_path) and None, capsys)
    assert code == 2
    assert text == f"error: {tmp_path}: Is a directory\n"


def test_os_error_without_details(capsys):
    assert outcome(raising(OSError("odd")), capsys) == (2, "error: odd\n")
    assert outcome(raising(TimeoutError()), capsys) == (2, "error: TimeoutError\n")


def test_ctrl_c_is_code_130_without_a_traceback(capsys):
    code, text = outcome(raising(KeyboardInterrupt()), capsys)
    assert code == 130
    assert text == "interrupted\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_returned_code_is_the_exit_code(returned, code, capsys):
    assert outcome(lambda: returned, capsys) == (code, "")


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyError("x"), AssertionError()])
def test_faults_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run(raising(error))


def test_wrong_flag_is_one_line_and_code_2(capsys):
    code, text = outcome(lambda: load_config(TrainConfig, ["--lrr=1"]) and None, capsys)
    assert code == 2
    assert text.startswith("error: unknown argument '--lrr'; did you mean --lr?")
    assert text.count("\n") == 1


def test_whole_process_ends_with_one_line_on_stderr():
    script = (
        "from engine.cli import run\n"
        "from engine.config import TrainConfig, load_config\n"
        "run(lambda: load_config(TrainConfig) and None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, "--batch_size=none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: --batch_size is 'none'; allowed is")
    assert "Traceback" not in done.stderr
