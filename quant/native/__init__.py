"""The C++ kernels of fake quantization (fake_quant.cc): built on first use, then loaded.

With Paddle 2.6 the library also has the gradients of a convolution, for `recompute.py`.

The library is kept in a cache folder under a name made of all that it depends on: source, compiler,
Python and Paddle. One process builds while others wait. Where it cannot be built, one line says why
and the Paddle operators of `functional.py` compute the same, more slowly.

Environment:
    PADDLEQAT_NATIVE=0     never use the kernels
    PADDLEQAT_CACHE_DIR    the cache folder (default: paddleqat in $XDG_CACHE_HOME or ~/.cache)
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import paddle
from paddle import Tensor

from .. import compat
from ..grid import Grid

SOURCE = Path(__file__).with_name("fake_quant.cc")
CUDA_SOURCE = Path(__file__).with_name("fake_quant.cu")
CONV_SOURCE = Path(__file__).with_name("conv_gradients.cc")
CUDA_HEADER = Path(__file__).with_name("fake_quant.cuh")
# The same sums in the same order as Paddle's operators: no fused multiply-add.
_FLAGS = ["-O3", "-fopenmp", "-ffp-contract=off"]
_BUILD = """
import json, sys, zlib
from paddle.utils import cpp_extension
name, folder, sources, flags = json.loads(sys.argv[1])
cpp_extension.load(name=name, sources=sources, extra_cxx_cflags=flags, build_directory=folder)
"""
_NAME = "paddleqat_native"
_SECONDS = 600


class BuildError(Exception):
    """The library cannot be built or loaded; the text is one line."""


class _State:
    """Whether the kernels are there; None before the first use."""

    usable: bool | None = None


def runs_on(x: Tensor) -> bool:
    """True where the kernels can be used for this tensor; builds them at the first call."""
    if x.dtype != paddle.float32 or not paddle.in_dynamic_mode() or x.size == 0:
        return False
    if not (x.place.is_cpu_place() or (x.place.is_gpu_place() and compiles_cuda())):
        return False
    if _State.usable is None:
        _State.usable = _prepare()
    return _State.usable


def abs_max(x: Tensor, axis: int | None) -> Tensor:
    """`functional.abs_max` of a float32 tensor."""
    return _run("abs_max", x, -1 if axis is None else axis)[0]


def fake_quant(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """`functional.quantize_dequantize`; `scale` has one number, or one per index of an axis."""
    axis = -1
    if scale.size > 1:
        axis = max(i for i, size in enumerate(scale.shape) if size > 1)
    return _run("fake_quant", x, scale, axis, float(grid.low), float(grid.high), grid.rounds)[0]


def pact_backward(x: Tensor, alpha: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of PACT for `x` and `alpha`; the latter is summed in float64 per block."""
    dx, dalpha = _run("pact_backward", x, alpha, grad)
    return dx, dalpha


def _run(name: str, *arguments: object) -> list[Tensor]:
    # The kernels read memory in order, which a view of a tensor may not be.
    whole = [
        x.contiguous() if isinstance(x, Tensor) and not x.is_contiguous() else x for x in arguments
    ]
    return compat.run_custom_op(f"paddleqat_{name}", *whole)


@cache
def compiles_cuda() -> bool:
    """True where the library has its kernels for the GPU: Paddle does, and nvcc is there."""
    if not paddle.is_compiled_with_cuda():
        return False
    from paddle.utils.cpp_extension.extension_utils import find_cuda_home

    return find_cuda_home() is not None


def _prepare() -> bool:
    if os.environ.get("PADDLEQAT_NATIVE", "1") == "0":
        return False
    try:
        load(library(cache_folder()))
    except (BuildError, OSError) as error:
        if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":  # one process of a job speaks
            print(
                f"note: fake quantization runs on Paddle's own operators, with the same results "
                f"and slower: {error}",
                file=sys.stderr,
            )
        return False
    return True


def cache_folder() -> Path:
    """Where libraries are kept."""
    own = os.environ.get("PADDLEQAT_CACHE_DIR")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddleqat"


def library(folder: Path) -> Path:
    """The library, built into `folder` if it is not there yet.

    Raises:
        BuildError: there is no compiler, or it fails.
        OSError: the folder cannot be written to.
    """
    sources = [SOURCE]
    sources += [CUDA_SOURCE] if compiles_cuda() else []
    sources += [] if compat.has_conv2d_gradients() else [CONV_SOURCE]
    path = folder / f"fake_quant-{_key(sources)}.so"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "build.lock"):
        if not path.is_file():
            _build(sources, path)
    return path


def load(path: Path) -> None:
    """Registers the operators of a library with Paddle.

    Raises:
        BuildError: Paddle cannot load it.
    """
    from paddle.utils.cpp_extension import load_op_meta_info_and_register_op

    try:
        load_op_meta_info_and_register_op(str(path))
    except Exception as error:  # of several types, from C++
        raise BuildError(f"{path} does not load: {_first_line(str(error))}") from error


def compiler() -> str:
    """The C++ compiler that Paddle's extension builder takes."""
    return os.environ.get("CXX", "g++")


def _key(sources: list[Path]) -> str:
    try:
        version = subprocess.run(
            [compiler(), "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        raise BuildError(f"there is no C++ compiler ({compiler()})") from None
    digest = hashlib.sha256()
    parts = [version, paddle.__version__, paddle.version.commit, sys.version, platform.machine()]
    read = [*sources, *([CUDA_HEADER] if CUDA_SOURCE in sources else [])]
    for part in [*parts, *_FLAGS, *(source.read_text() for source in read)]:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _build(sources: list[Path], path: Path) -> None:
    """Compiles in a temporary folder and moves the library to its name."""
    print("compiling the kernels of fake quantization, once ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        flags = [*_FLAGS, *(["-DPADDLEQAT_CUDA"] if CUDA_SOURCE in sources else [])]
        job = json.dumps([_NAME, folder, [str(source) for source in sources], flags])
        try:
            done = subprocess.run(
                [sys.executable, "-c", _BUILD, job],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"the compiler took more than {_SECONDS} s") from None
        found = glob.glob(f"{folder}/**/{_NAME}*.so", recursive=True)
        if done.returncode != 0 or not found:
            raise BuildError(f"the compiler failed: {_error_line(done.stdout + done.stderr)}")
        os.replace(found[0], path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process at a time in; the lock of one that dies is gone with it."""
    try:
        import fcntl
    except ImportError:
        raise BuildError("kernels are built on Linux and macOS only") from None
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _error_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line.lower()]
    return _first_line("\n".join(lines) or text)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
