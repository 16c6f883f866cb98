import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from engine import distributed
from engine.errors import EngineError
from engine.runtime import available_cores, prepare_process, seed_everything, select_device

ROOT = Path(__file__).resolve().parents[2]


def draws():
    return paddle.rand([2]).tolist(), np.random.rand(), random.random()


def test_the_same_parts_give_the_same_draws_and_others_others():
    seed_everything(1, 2, 3)
    first = draws()
    draws()
    seed_everything(1, 2, 3)
    assert draws() == first
    for parts in [(1, 2, 4), (3, 2, 1), (1, 2)]:
        seed_everything(*parts)
        assert draws() != first


def test_the_cores_are_shared_between_the_processes_of_a_job(monkeypatch):
    for processes in (1, 2, 10000):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.delenv("PADDLE_LOCAL_SIZE", raising=False)
        monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(processes))
        prepare_process()
        assert int(os.environ["OMP_NUM_THREADS"]) == max(1, available_cores() // processes)


def test_a_number_of_threads_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    prepare_process()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_the_wish_for_a_gpu_ends_on_the_cpu_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: False)
    assert select_device(True) == "cpu"
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and error.count("\n") == 1
    assert select_device(False) == "cpu"
    assert capsys.readouterr().err == ""


def test_only_the_first_process_warns(monkeypatch, capsys):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: False)
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    select_device(True)
    assert capsys.readouterr().err == ""


def test_importing_the_module_does_not_load_paddle():
    code = "import sys, engine.runtime; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("script", ["eval.py", "export.py"])
def test_scripts_for_one_process_refuse_the_launcher(script, monkeypatch):
    distributed.require_one_process(script)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    with pytest.raises(EngineError, match=f"{script} works in one process"):
        distributed.require_one_process(script)
