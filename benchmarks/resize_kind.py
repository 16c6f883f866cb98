"""What it costs to evaluate with another kind of resize than the network was trained with.

    python benchmarks/resize_kind.py --data_dir data/fashion-mnist

Trains with train.py on Fashion-MNIST's images shrunk from 28 x 28 to each of ``--sizes``, once with
OpenCV's filter and once with the antialiased one (``--antialias``), per seed, and evaluates the
int8 file of each with eval.py both ways. Writes a JSON (commands, versions, commit, Top1), a CSV
and a PNG. Without --data_dir the small sample that ships is used. Each result is noted in
OUTPUT.rows.jsonl as well, with its commit, and taken from there by the next run: the same command
gives the same network, and a cell takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Rows, commit, hidden, paddle_version, write_results

KINDS = {"opencv": "--antialias=False", "antialias": "--antialias=True"}


def main() -> None:
    """Trains, evaluates, writes."""
    args = parse()
    rows: Rows = []
    commands: list[str] = []
    notes = Path(f"{args.output}.rows.jsonl")
    known = notes.read_text().splitlines() if notes.exists() else []
    before = {cell(row): row for row in map(json.loads, known)}
    with tempfile.TemporaryDirectory() as name, open(notes, "a", encoding="utf-8") as file:
        for size, kind, seed in product(args.sizes, KINDS, args.seeds):
            if (size, kind, seed) not in before:
                row = {**measure(size, kind, seed, Path(name), args, commands), "commit": commit()}
                before[size, kind, seed] = row
                print(json.dumps(row), file=file, flush=True)
            rows.append(before[size, kind, seed])
            print(rows[-1], flush=True)
    notes.unlink()
    facts = {
        "paddle": paddle_version(),
        "commands": commands,
        "unit": "Top1 of the int8 file in percent; trained and evaluated name the kind of resize",
    }
    write_results(rows, args.output, facts, plot)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", help="folder of the four idx files")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--sizes", nargs="+", type=int, default=[14, 10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=150, help="of each stage, float and QAT")
    default = ROOT / "benchmarks" / "results" / "resize_kind"
    parser.add_argument("--output", type=Path, default=default, help="path without an ending")
    return parser.parse_args()


def cell(row: dict[str, Any]) -> tuple[int, str, int]:
    """What was measured."""
    return row["image_size"], row["trained"], row["seed"]


def measure(
    size: int, kind: str, seed: int, folder: Path, args: argparse.Namespace, commands: list[str]
) -> dict[str, Any]:
    """Trains one network and evaluates it both ways."""
    run = folder / f"{size}_{kind}_{seed}"
    data = [] if args.data_dir is None else [f"--data_dir={args.data_dir}"]
    common = ["--use_gpu=False", "--num_workers=1", *data]
    train = [
        "train.py", f"--model={args.model}", "--data=fashion_mnist", "--channels=1", "--mean=0.286",
        "--std=0.353", f"--image_size={size}", KINDS[kind], f"--seed={seed}", "--batch_size=128",
        "--fp32_epochs=1", f"--max_steps={args.max_steps}", "--fp32_lr=0.05", "--lr=0.005",
        "--lr_strategy=cosine_decay", "--l2_decay=1e-4", f"--model_save_dir={run}", *common,
    ]  # fmt: skip
    call(train, folder, commands)
    row: dict[str, Any] = {"image_size": size, "trained": kind, "seed": seed}
    for other, flag in KINDS.items():
        result = folder / "result.json"
        evaluate = [
            "eval.py",
            str(run / "inference_model" / "qat_model"),
            flag,
            f"--output={result}",
        ]
        call([*evaluate, *common], folder, commands)
        row[f"evaluated_{other}"] = 100 * json.loads(result.read_text())["top1"]
    return row


def call(words: list[str], folder: Path, commands: list[str]) -> None:
    """Runs a script of the project and notes the command."""
    words_shown = [word.replace(str(folder), "RUNS") for word in words]
    commands.append(" ".join(["python", *(hidden(word) for word in words_shown)]))
    done = subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:]],
        cwd=folder, capture_output=True, text=True, check=False,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{commands[-1]} ended with {done.returncode}: {done.stderr[-500:]}")


def plot(rows: Rows, path: str) -> None:
    """Points: the change of Top1 by evaluating in the other way, one per seed, and the means."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    sizes = sorted({row["image_size"] for row in rows}, reverse=True)
    for shift, kind in zip((-0.12, 0.12), KINDS):
        (other,) = set(KINDS) - {kind}
        label = f"trained {kind}, evaluated {other}"
        points = [
            (at + shift, row[f"evaluated_{other}"] - row[f"evaluated_{kind}"])
            for at, size in enumerate(sizes)
            for row in rows
            if row["image_size"] == size and row["trained"] == kind
        ]
        line = axes.plot(*zip(*points), "o", label=label)[0]
        for x in sorted({x for x, _ in points}):
            mean = statistics.mean(y for at, y in points if at == x)
            axes.plot([x - 0.08, x + 0.08], [mean, mean], color=line.get_color())
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xticks(range(len(sizes)), [f"28 to {size}" for size in sizes])
    axes.set_ylabel("change of Top1, points")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
