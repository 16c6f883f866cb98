from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from engine.errors import EngineError
from engine.lod_tensor import read_tensor
from engine.matching import load_into
from engine.weights import load_weights, weights_size
from models import MobileNetV3, with_old_names

STATIC = Path(__file__).with_name("static_variables.py")
ROOT = STATIC.parents[2]


def run_static(mode: str, folder: Path, arrays: dict[str, np.ndarray]) -> None:
    file = folder.parent / "arrays.npz"
    np.savez(file, **arrays)
    done = subprocess.run(
        [sys.executable, str(STATIC), mode, str(folder), str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-2000:]


def refusal(path: Path) -> str:
    with pytest.raises(EngineError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 600
    return message


@pytest.fixture(scope="module")
def old_arrays() -> dict[str, np.ndarray]:
    """Random tensors by the old names of the smallest network."""
    rng = np.random.default_rng(0)
    state = with_old_names(MobileNetV3("small", 0.35, 10).state_dict())
    return {name: rng.normal(size=t.shape).astype(np.float32) for name, t in state.items()}


@pytest.fixture(scope="module")
def from_paddle(tmp_path_factory, old_arrays) -> Path:
    """What Paddle's static API writes for these tensors."""
    folder = tmp_path_factory.mktemp("static") / "weights"
    run_static("save", folder, old_arrays)
    return folder


def assert_same(read: dict[str, np.ndarray], written: dict[str, np.ndarray]) -> None:
    assert set(read) == set(written)
    for name, array in written.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array, err_msg=name)


class TestAgainstPaddlesStaticApi:
    def test_its_folder_is_read(self, from_paddle, old_arrays):
        assert_same(load_weights(from_paddle), old_arrays)

    @pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_the_tar_of_its_folder_is_read(self, from_paddle, old_arrays, tmp_path, format):
        path = tmp_path / "weights.tar"
        with tarfile.open(path, "w", format=format) as archive:
            archive.add(from_paddle, arcname="weights")
        assert_same(load_weights(path), old_arrays)

    def test_the_tar_of_the_system_is_read(self, from_paddle, old_arrays, tmp_path):
        path = tmp_path / "weights.tar"
        subprocess.run(
            ["tar", "cf", str(path), "-C", str(from_paddle.parent), "weights"], check=True
        )
        assert_same(load_weights(path), old_arrays)

    def test_its_network_computes_the_same(self, from_paddle, old_arrays):
        net = MobileNetV3("small", 0.35, 10)
        assert load_into(net, load_weights(from_paddle), from_paddle).mismatches == []
        state = with_old_names(net.state_dict())
        assert_same({name: tensor.numpy() for name, tensor in state.items()}, old_arrays)

    def test_its_file_for_all_variables_is_one_stream_after_the_other(
        self, from_paddle, old_arrays
    ):
        data = (from_paddle.parent / "weights-combined" / "all").read_bytes()
        end = 0
        for name in sorted(old_arrays):
            array, end = read_tensor(data, end)
            np.testing.assert_array_equal(array, old_arrays[name], err_msg=name)
        assert end == len(data)

    def test_every_data_type_that_it_writes(self, tmp_path):
        rng = np.random.default_rng(1)
        dtypes = "float16 float32 float64 int16 int32 int64 uint8 int8".split()
        arrays = {f"v_{d}": rng.integers(0, 100, (2, 3)).astype(d) for d in dtypes}
        run_static("save", tmp_path / "w", arrays)
        assert_same(load_weights(tmp_path / "w"), arrays)

    def test_it_reads_what_these_tests_write(self, old_format, old_arrays, tmp_path):
        old_format.tar(tmp_path / "w.tar", old_arrays, top="weights")
        with tarfile.open(tmp_path / "w.tar") as archive:
            archive.extractall(tmp_path)
        run_static("load", tmp_path / "weights", old_arrays)


SOME = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


@pytest.mark.parametrize("top", ["weights", ".", "./weights", "deep/er"])
def test_files_may_lie_in_any_one_folder_of_the_tar(old_format, tmp_path, top):
    assert_same(load_weights(old_format.tar(tmp_path / "w.tar", SOME, top)), SOME)


def test_size_is_that_of_all_files(old_format, tmp_path):
    folder = old_format.folder(tmp_path / "w", SOME)
    assert weights_size(folder) == sum(len(old_format.tensor(array)) for array in SOME.values())
    tar = old_format.tar(tmp_path / "x.tar", SOME)
    assert weights_size(tar) == weights_size(tmp_path / "x") == tar.stat().st_size


class TestHostileFolders:
    def test_empty_one(self, tmp_path):
        assert "a folder without any tensor" in refusal(tmp_path)

    def test_other_file(self, old_format, tmp_path):
        folder = old_format.folder(tmp_path / "w", SOME)
        (folder / "notes.txt").write_text("hello " * 20)
        assert "notes.txt in it is no tensor of Paddle 1.x" in refusal(folder)

    def test_pickle_is_not_run(self, old_format, tmp_path):
        folder = old_format.folder(tmp_path / "w", SOME)
        marker = tmp_path / "marker"
        (folder / "p").write_bytes(b"cos\nsystem\n(S'touch " + bytes(marker) + b"'\ntR.")
        assert "p in it is no tensor" in refusal(folder)
        assert not marker.exists()

    def test_link_out_of_the_folder_is_not_followed(self, old_format, tmp_path):
        folder = old_format.folder(tmp_path / "w", SOME)
        (tmp_path / "secret").write_bytes(old_format.tensor(SOME["a"]))
        (folder / "c").symlink_to(tmp_path / "secret")
        assert "c in it is a link" in refusal(folder)

    def test_pipe_and_folder_are_not_opened(self, old_format, tmp_path):
        folder = old_format.folder(tmp_path / "w", SOME)
        os.mkfifo(folder / "c")
        assert "c in it is no file" in refusal(folder)
        (folder / "c").unlink()
        (folder / "c").mkdir()
        assert "c in it is no file" in refusal(folder)

    def test_folder_of_a_run_names_the_file_to_take(self, tmp_path):
        (tmp_path / "best_model.pdparams").write_bytes(b"")
        assert "best_model.pdparams in it holds weights; name that file" in refusal(tmp_path)

    def test_bytes_behind_the_tensor(self, old_format, tmp_path):
        folder = old_format.folder(tmp_path / "w", SOME)
        (folder / "a").write_bytes(old_format.tensor(SOME["a"]) + b"x")
        assert "it has 51 bytes, and its description says 50" in refusal(folder)

    def test_names_do_not_steer_the_terminal(self, old_format, tmp_path):
        folder = old_format.folder(tmp_path / "w", SOME)
        (folder / "\x1b[2J").write_bytes(b"x")
        assert refusal(folder).isprintable()


class TestHostileTars:
    def test_empty_one(self, old_format, tmp_path):
        assert "without any file" in refusal(old_format.tar_of(tmp_path / "w.tar", {}))

    def test_pickle_with_code_is_not_run(self, old_format, tmp_path):
        marker = tmp_path / "marker"
        code = b"cos\nsystem\n(S'touch " + bytes(marker) + b"'\ntR."
        tensor = old_format.tensor(SOME["a"])
        path = old_format.tar_of(tmp_path / "w.tar", {"w/a": tensor, "w/p": code})
        assert "p in it is no tensor" in refusal(path)
        assert not marker.exists()

    def test_nothing_is_written_where_a_path_leads(self, old_format, tmp_path):
        inner = tmp_path / "inner"
        inner.mkdir()
        tensor = old_format.tensor(SOME["a"])
        path = old_format.tar_of(inner / "w.tar", {"w/a": tensor, "../escaped": tensor})
        assert "../escaped leads out" in refusal(path)
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["inner", "w.tar"]

    def test_reading_leaves_nothing_on_the_disk(self, old_format, tmp_path):
        path = old_format.tar(tmp_path / "w.tar", SOME)
        load_weights(path)
        assert [p.name for p in tmp_path.iterdir()] == ["w.tar"]

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
    def test_links_and_devices(self, tmp_path, kind):
        info = tarfile.TarInfo("w/a")
        info.type, info.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "w.tar", "w") as archive:
            archive.addfile(info)
        assert "refused, w/a is a" in refusal(tmp_path / "w.tar")

    def test_the_same_name_twice(self, old_format, tmp_path):
        path = tmp_path / "w.tar"
        with tarfile.open(path, "w") as archive:
            for _ in range(2):
                archive.addfile(tarfile.TarInfo("w/a"))
        assert "has w/a twice" in refusal(path)

    def test_files_in_two_folders(self, old_format, tmp_path):
        tensor = old_format.tensor(SOME["a"])
        path = old_format.tar_of(tmp_path / "w.tar", {"w/a": tensor, "v/a": tensor})
        assert "files in v and in w" in refusal(path)

    def test_newer_weights_in_a_tar(self, old_format, tmp_path):
        path = old_format.tar_of(tmp_path / "w.tar", {"w/x.pdparams": b"x"})
        assert "x.pdparams in it holds weights" in refusal(path)

    def test_gzip_behind_the_ending_tar(self, tmp_path):
        with tarfile.open(tmp_path / "w.tar", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("w/a"))
        # Padded, so that there is a header's length of it.
        with open(tmp_path / "w.tar", "ab") as file:
            file.write(bytes(512))
        assert "not a plain tar" in refusal(tmp_path / "w.tar")

    def test_every_cut_is_one_clean_error(self, old_format, tmp_path):
        path = old_format.tar(tmp_path / "w.tar", SOME)
        data = path.read_bytes()
        end = len(data.rstrip(b"\0"))
        for length in range(0, end, 37):
            path.write_bytes(data[:length])
            assert "cut" in refusal(path)


def test_file_that_is_mostly_holes_is_refused_unread(tmp_path, peak_memory):
    path = tmp_path / "w.tar"
    with open(path, "wb") as file:
        file.truncate(2**40)
    with peak_memory() as peak:
        message = refusal(path)
    assert "of 1099511627776 bytes; allowed are 1073741824" in message
    assert peak.size < 100_000


CAPPED = """
import resource, sys, zlib
from engine.weights import load_weights
from engine.errors import EngineError
load_weights(sys.argv[1])  # all that reading a file needs is loaded now
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), used + (32 << 20)))
try:
    load_weights(sys.argv[2])
except EngineError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_claims_of_a_tar_fit_into_a_process_that_has_no_memory_for_them(old_format, tmp_path):
    good = old_format.tar(tmp_path / "good.tar", SOME)
    description = old_format.description(5, [2**30, 2**10])
    claim = old_format.stream(description, bytes(1000))
    bad = old_format.tar_of(tmp_path / "bad.tar", {"w/a": claim})
    done = subprocess.run(
        [sys.executable, "-c", CAPPED, str(good), str(bad)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "refused:" in done.stdout and "its description says" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("size", "told"), [(5 << 30, "allowed are 1073741824"), (1000 << 20, "fc_weights in it is no")]
)
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_a_large_sparse_file_is_refused_before_it_is_read(kind, size, told, tmp_path, peak_memory):
    """It takes a few kB on the disk, and no memory to find out that it is no tensor."""
    if kind == "tar":
        path = tmp_path / "weights.tar"
        head = tarfile.TarInfo("weights/fc_weights")
        head.size = size
        with open(path, "wb") as file:
            file.write(head.tobuf(tarfile.USTAR_FORMAT))
            file.truncate(512 + size + 1024)
    else:
        path = tmp_path / "weights"
        path.mkdir()
        with open(path / "fc_weights", "wb") as file:
            file.truncate(size)
    with peak_memory() as peak:
        assert told in refusal(path)
    assert peak.size < 1 << 20
