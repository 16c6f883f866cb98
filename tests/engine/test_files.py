import os
import resource
import signal

import numpy as np
import paddle
import pytest

from engine.checkpoint import save_object
from engine.errors import EngineError
from engine.files import make_writable_folder, own_folder, read_json, write_atomically, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})

    def fail(name):
        with open(name, "w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(EngineError, match=r"a\.json: cannot be written \(No space left"):
        write_atomically(path, fail)
    assert read_json(path) == {"n": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_old_one(tmp_path):
    path = tmp_path / "w.pdparams"
    save_object({"w": paddle.ones([4])}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, hard))
    try:
        with pytest.raises(EngineError, match=r"w\.pdparams: cannot be written"):
            save_object({"w": paddle.ones([100000])}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(paddle.load(str(path))["w"].numpy(), np.ones(4))
    assert names(tmp_path) == ["w.pdparams"]


def test_a_folder_below_a_file_is_refused_by_the_flag_that_named_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="--output is .*file/x"):
        make_writable_folder(tmp_path / "file" / "x", "--output")


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    make_writable_folder(tmp_path / "a" / "b", "--output")
    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_broken_json_file_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(EngineError, match=r"x\.json: not a JSON file"):
        read_json(tmp_path / "x.json")


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    child = os.fork()
    if child == 0:

        def half(name):
            with open(name, "w") as file:
                file.write('{"n"')
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        write_atomically(path, half)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert read_json(path) == {"n": 1}
    own_folder(tmp_path, "inference_model", "--model_save_dir")
    assert names(tmp_path) == [".lock", "a.json"]


def test_a_drive_that_cannot_flush_folders_is_no_failure(tmp_path, monkeypatch):
    fsync = os.fsync

    def refusing(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    write_json(tmp_path / "a.json", {"n": 1})
    assert read_json(tmp_path / "a.json") == {"n": 1}
