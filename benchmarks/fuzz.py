"""Damages every kind of file that is read, again and again, and looks at what the readers do.

    python benchmarks/fuzz.py --count 20000

A file may be refused by one of the project's own errors, or read. All else is a finding: another
exception, a hang, a crash, memory beyond the limit. Files for an inference engine (Paddle
Inference, ONNX Runtime: C++) run in a process of their own in eval.py and export.py too, so that
a crash there is one line; they are counted apart. Ends with code 1 if there was a finding, and
leaves the file of each in ``--keep``. Writes a JSON (command, seed, versions, commit, counts), a
CSV with a row per kind of file and a PNG.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: see quant/__init__.py)
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from fuzz_targets import TARGETS, Target
from side_by_side import ROOT, Rows, paddle_version, write_results

SECONDS_PER_FILE = 20.0
EXTRA_MEMORY = 4 << 30
BAD_TARGET = 3
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def main() -> int:
    """Runs the workers, writes; returns the exit code."""
    args = parse()
    if args.worker:
        return work(TARGETS[args.worker], args)
    rows: Rows = []
    for name in args.targets:
        rows.append(measure(TARGETS[name], args))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    facts = {"paddle": paddle_version(), "seed": args.seed, "seconds_per_file": SECONDS_PER_FILE}
    write_results(rows, args.output, facts, plot)
    return 1 if any(row["findings"] for row in rows) else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20000, help="files of each kind")
    parser.add_argument("--engine_count", type=int, default=2000, help="files for each engine")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz_findings"))
    default = ROOT / "benchmarks" / "results" / f"fuzz_{paddle_version()}"
    parser.add_argument("--output", type=Path, default=default, help="path without an ending")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(target: Target, args: argparse.Namespace) -> dict[str, Any]:
    """All files of one kind; a worker that crashes or hangs is started again after that file."""
    count = args.engine_count if target.is_engine else args.count
    ends: Counter[str] = Counter()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target.make(folder)
        start = peak = 0
        while start < count:
            ended = run_worker(target, args, folder, start, count)
            notes = read_notes(folder / "notes")
            ends.update(note["end"] for note in notes)
            peak = max([peak, *(note["mib"] for note in notes)])
            start += len(notes)
            if start < count:  # the file after the last note is the one that ended the worker
                ends[ended] += 1
                if ended == "hang" or not target.is_engine:
                    keep(target, args, folder, start, ended)
                start += 1
    crashes = ends["crash"]
    findings = ends["finding"] + ends["hang"] + (0 if target.is_engine else crashes)
    return {
        "kind": target.name,
        "files": count,
        "refused": ends["refused"],
        "read": ends["read"],
        "engine_crashes": crashes if target.is_engine else 0,
        "findings": findings,
        "most_mib_more": peak,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def run_worker(
    target: Target, args: argparse.Namespace, folder: Path, start: int, count: int
) -> str:
    """Let a worker go through the files from ``start`` on; returns what ended it."""
    (folder / "notes").unlink(missing_ok=True)
    (folder / "notes").touch()
    worker = subprocess.Popen(
        [
            sys.executable, __file__, "--worker", target.name, "--folder", str(folder),
            "--start", str(start), "--count", str(count), "--seed", str(args.seed),
            "--keep", str(args.keep),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=open(folder / "stderr", "w"),  # noqa: SIM115
    )  # fmt: skip
    last, since = -1, time.monotonic()
    while worker.poll() is None:
        time.sleep(0.05)
        size = (folder / "notes").stat().st_size
        if size != last:
            last, since = size, time.monotonic()
        allowed = SECONDS_PER_FILE if last > 0 else 6 * SECONDS_PER_FILE  # it loads Paddle first
        if time.monotonic() - since > allowed:
            worker.kill()
            worker.wait()
            return "hang"
    if worker.returncode == BAD_TARGET:
        raise SystemExit(f"{target.name}: whole files are refused: {stderr(folder)}")
    return "crash"


def read_notes(path: Path) -> list[dict[str, Any]]:
    """One note per file that a worker came to the end of."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def keep(target: Target, args: argparse.Namespace, folder: Path, index: int, end: str) -> None:
    """Keep a file that a reader did not cope with."""
    args.keep.mkdir(parents=True, exist_ok=True)
    path = args.keep / f"{target.name}_{index}_{end}{target.ending}"
    path.write_bytes(damaged(target, folder, args.seed, index))
    Path(f"{path}.txt").write_text(stderr(folder))


def stderr(folder: Path) -> str:
    """What a worker said last."""
    return (folder / "stderr").read_text(errors="replace")[-4000:]


def work(target: Target, args: argparse.Namespace) -> int:
    """A worker: reads one damaged file after the other."""
    read, errors = target.open()
    place = args.folder / "damaged"
    place.mkdir(exist_ok=True)
    path = place / f"file{target.ending}"
    try:
        target.read_whole(read, args.folder, place, path)  # what is loaded once does not count
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return BAD_TARGET
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit += EXTRA_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(args.folder / "notes", "a", encoding="utf-8") as notes:
        for index in range(args.start, args.count):
            path.write_bytes(damaged(target, args.folder, args.seed, index))
            end = "read"
            try:
                read(path)
            except errors as error:
                end = "refused"
                if "\n" in str(error).strip() and target.one_line:
                    end = "finding"
            except Exception as error:  # just what is looked for
                end = "finding"
                print(f"{index}: {type(error).__name__}: {error}", file=sys.stderr)
            if end == "finding":
                args.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, args.keep / f"{target.name}_{index}{target.ending}")
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
            notes.write(json.dumps({"end": end, "mib": more}) + "\n")
            notes.flush()
    return 0


def damaged(target: Target, folder: Path, seed: int, index: int) -> bytes:
    """Number ``index`` of the damaged files."""
    rng = np.random.default_rng((seed, index))
    seeds = sorted((folder / "seeds").iterdir())
    data = bytearray(seeds[index % len(seeds)].read_bytes())
    other = seeds[int(rng.integers(len(seeds)))].read_bytes()
    for _ in range(int(rng.integers(1, 5))):
        data = bytearray(_CHANGES[int(rng.integers(len(_CHANGES)))](data, other, rng))
    return bytes(data)


def _place(data: bytearray, rng: np.random.Generator, length: int = 1) -> int:
    """Somewhere, half of the time near the start, where the headers are."""
    most = max(1, len(data) - length)
    return int(rng.integers(min(most, 128) if rng.random() < 0.5 else most))


def _flip(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    if data:
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return data


def _extreme(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    size = int(rng.choice([1, 2, 4, 8]))
    at = _place(data, rng, size)
    value = EXTREMES[int(rng.integers(len(EXTREMES)))] & ((1 << 8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")
    return data


def _cut(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _remove(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 65)) :]


def _repeat(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    at, length = _place(data, rng), int(rng.integers(1, 257))
    return data[: at + length] + data[at:]


def _insert(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 33))) + data[at:]


def _splice(data: bytearray, other: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)] + other[_place(bytearray(other), rng) :]


_CHANGES = (_flip, _flip, _extreme, _extreme, _cut, _remove, _repeat, _insert, _splice)


def plot(rows: Rows, path: str) -> None:
    """Bars: what became of the files of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    left = np.zeros(len(rows))
    names = [row["kind"] for row in rows]
    for key in ("refused", "read", "engine_crashes", "findings"):
        share = np.array([row[key] / row["files"] for row in rows])
        axes.barh(names, share, left=left, label=key.replace("_", " "))
        left += share
    axes.set_xlabel("share of the files")
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=4, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
