"""Kills a training run at random moments, goes on each time, and compares the end with a whole run.

    python benchmarks/crash.py --kills 50

A run is killed (SIGKILL) after a random time and started again with ``--resume`` until it is done;
then the next run begins, until there were as many kills as asked for. After each kill every file is
read: one that stands under its name and is not whole is a fault. After each run weights, momentum,
averages, the log (without times) and the int8 file are compared with those of a run that nobody has
disturbed, bit by bit. Ends with code 1 if there was a fault. Writes a JSON (command, seed,
versions, commit, what happened), a CSV with a row per kill and a PNG.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import ROOT, Rows, paddle_version, write_results

# Every part that a checkpoint has to bring back: momentum, averaged weights, a teacher, PACT,
# steps of several batches, both stages.
FLAGS = [
    "--model=lenet", "--data=fashion_mnist", "--use_gpu=False", "--num_workers=1",
    "--batch_size=100", "--accumulate_steps=2", "--fp32_epochs=1", "--fp32_lr=0.02", "--lr=0.005",
    "--num_epochs=2", "--max_steps=90", "--ema_decay=0.9", "--distill", "--use_pact=True",
    "--save_steps=5", "--log_period=5", "--verify_images=64",
]  # fmt: skip
TIMES = ("reader_cost", "batch_cost", "images_per_second")
STARTUP = 2.0  # seconds before which there is nothing to disturb


def main() -> int:
    """Kills, compares, writes; returns the exit code."""
    args = parse()
    rng = random.Random(args.seed)
    rows: Rows = []
    faults: list[str] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "whole"
        start = time.perf_counter()
        done = subprocess.run(command(whole), env=environment(), capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"the undisturbed run failed: {done.stderr[-2000:]}")
        seconds = time.perf_counter() - start
        run = 0
        while len(rows) < args.kills:
            run += 1
            cut = folder / f"run_{run}"
            while len(rows) < args.kills:
                after = rng.uniform(STARTUP, STARTUP + seconds)
                if not killed(cut, run, after, faults):
                    break
                rows.append({"run": run, "seconds": round(after, 3), **found_in(cut, faults)})
                print(rows[-1], flush=True)
            else:
                finish(cut, run, faults)
            faults += [f"run {run}: {line}" for line in differences(whole, cut)]
    facts = {
        "paddle": paddle_version(),
        "seed": args.seed,
        "run": " ".join(["train.py", *FLAGS]),
        "seconds_of_a_whole_run": round(seconds, 1),
        "kills": len(rows),
        "runs": run,
        "faults": faults,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_results(rows, args.output, facts, plot)
    print(f"{len(rows)} kills in {run} runs, {len(faults)} faults")
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    default = ROOT / "benchmarks" / "results" / f"crash_{paddle_version()}"
    parser.add_argument("--output", type=Path, default=default, help="path without an ending")
    return parser.parse_args()


def command(folder: Path) -> list[str]:
    """One start of the run in a folder."""
    words = [sys.executable, str(ROOT / "train.py"), *FLAGS]
    return [*words, f"--model_save_dir={folder}", "--resume"]


def environment() -> dict[str, str]:
    """One thread each: sums then come out in the same order."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def killed(folder: Path, run: int, seconds: float, faults: list[str]) -> bool:
    """Start the run and kill it after a time; False if it was done before."""
    process = subprocess.Popen(
        command(folder),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode != 0:
        faults.append(f"run {run}: ended with {process.returncode}: {errors[-500:]}")
    return False


def finish(folder: Path, run: int, faults: list[str]) -> None:
    """Let the run come to its end."""
    done = subprocess.run(command(folder), env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        faults.append(f"run {run}: ended with {done.returncode}: {done.stderr[-500:]}")


def found_in(folder: Path, faults: list[str]) -> dict[str, Any]:
    """Read every file that a killed run left; returns how far it had come."""
    import paddle

    from engine.checkpoint import load_latest, load_network_state
    from quant import QuantError
    from quant.paddle_format import check_complete

    state: dict[str, Any] = {"stage": None, "steps": 0, "evaluates": False, "files": 0}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith("."):
            continue
        state["files"] += 1
        try:
            if path.name == "latest.pdparams":
                progress = load_latest(path).progress
                state.update(stage=progress.stage, steps=progress.steps)
                state.update(evaluates=progress.unevaluated is not None)
            elif path.suffix == ".pdparams":
                load_network_state(path)
            elif path.suffix == ".pdopt":
                paddle.load(str(path))
            elif path.suffix == ".pdmodel":
                check_complete(str(path.with_suffix("")))
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".png" and not path.read_bytes().endswith(b"IEND\xaeB`\x82"):
                faults.append(f"{path.name} is cut")
            elif path.suffix == ".jsonl":
                for line in path.read_text().splitlines():
                    json.loads(line)
        except (QuantError, ValueError, OSError) as error:
            faults.append(f"{path.relative_to(folder)} after a kill: {error}")
    return state


def differences(whole: Path, cut: Path) -> list[str]:
    """What differs between a run that was killed now and then and one that was not."""
    import numpy as np

    from engine.weights import load_weights

    lines = []
    if not (cut / "summary.json").exists():
        return ["there is no summary.json"]
    names = [sorted(p.name for p in folder.glob("*.pdparams")) for folder in (whole, cut)]
    if names[0] != names[1]:
        lines.append(f"the checkpoints are {names[1]}, not {names[0]}")
    for name in set(names[0]) & set(names[1]):
        a, b = load_weights(whole / name), load_weights(cut / name)
        keys = (set(a) | set(b)) - {"train_state/progress"}  # holds the length of a log with times
        differ = [
            key
            for key in keys
            if key not in a or key not in b or a[key].tobytes() != b[key].tobytes()
        ]
        lines += [f"{name}: {key} differs" for key in differ]
        assert all(np.isfinite(value).all() for value in a.values() if value.dtype.kind == "f")
    file = Path("inference_model") / "qat_model.pdiparams"
    if (whole / file).read_bytes() != (cut / file).read_bytes():
        lines.append(f"{file} differs")
    logs = [
        [
            {key: value for key, value in json.loads(line).items() if key not in TIMES}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, cut)
    ]
    if logs[0] != logs[1]:
        lines.append("metrics.jsonl differs")
    return lines


def plot(rows: Rows, path: str) -> None:
    """How far the run was saved at each kill."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for stage in dict.fromkeys(row["stage"] for row in rows):
        chosen = [row for row in rows if row["stage"] == stage]
        label = f"saved in the {stage} stage" if stage else "nothing saved yet"
        axes.plot(
            [row["seconds"] for row in chosen], [row["steps"] for row in chosen], "o", label=label
        )
    axes.set_xlabel("killed after, seconds")
    axes.set_ylabel("saved step of the stage")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
