"""What the benchmarks share: processes that take turns, and the files of results."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Rows = list[dict[str, Any]]


class Worker:
    """A process that holds one variant, and does its work once for each line that it is sent.

    Args:
        command: of the process; it writes one line of JSON when it is ready and one per answer.
        env: environment variables on top of this process's.

    Raises:
        RuntimeError: the process ended; the text is its last line.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, **env},
        )  # fmt: skip
        self._answer()  # it is ready

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None and self.process.stderr is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        lines = [text for text in self.process.stderr.read().splitlines() if text.strip()]
        raise RuntimeError(lines[-1] if lines else "it ended without a message")

    def work(self, order: str = "") -> dict[str, Any]:
        """One turn; returns the process's answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The names, each turn from another one on: whoever comes first is not always the same."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def write_results(
    rows: Rows, prefix: Path, facts: dict[str, Any], plot: Callable[[Rows, str], None]
) -> None:
    """PREFIX.json (command, commit, versions, processor, ``facts``, rows), .csv and .png."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    script = Path(sys.argv[0]).name
    command = ["python", f"benchmarks/{script}", *(hidden(item) for item in sys.argv[1:])]
    content = {
        "command": " ".join(command),
        "commit": commit(),
        "python": platform.python_version(),
        "cpu": cpu(),
        "date": time.strftime("%Y-%m-%d"),
        **facts,
        "rows": rows,
    }
    Path(f"{prefix}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with open(f"{prefix}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, f"{prefix}.png")
    print(f"written: {prefix}.json, .csv, .png")


def hidden(argument: str) -> str:
    """A command-line argument, without a path that only this machine has."""
    flag, _, value = argument.partition("=")
    if flag.startswith("--") and value.startswith("/"):
        return f"{flag}={hidden(value)}"
    if not argument.startswith("/"):
        return argument
    return "PYTHON" if Path(argument).name.startswith("python") else "FOLDER"


def commit() -> str | None:
    """The commit that is measured."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def cpu() -> str:
    """Name of the processor and the vector instructions that matter here, as Linux tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    name = next((x.split(":")[1].strip() for x in text.splitlines() if "model name" in x), "")
    flags = next((x.split(":")[1].split() for x in text.splitlines() if x.startswith("flags")), [])
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags]
    return f"{name} ({', '.join(known)})"


def versions(python: str | None, names: Sequence[str]) -> dict[str, str]:
    """The versions of packages that another Python has; nothing of those that it lacks."""
    if python is None:
        return {}
    code = (
        "import sys\nfrom importlib import metadata\nfor name in sys.argv[1:]:\n"
        " try: print(name, metadata.version(name))\n except metadata.PackageNotFoundError: pass"
    )
    found = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(line.split() for line in found.stdout.splitlines())


def paddle_version() -> str:
    """The installed version, without importing it."""
    for name in ("paddlepaddle", "paddlepaddle-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise SystemExit("paddlepaddle is not installed")
