"""What a step of quantization-aware training costs, in time and memory, beside a float step.

    python benchmarks/train_step.py --models mobilenet_v1 mobilenet_v2 mobilenet_v3

A step is forward, cross entropy, backward and the update of Momentum, on random images. Variants:

    float     the network as it is, freed memory kept (engine/memory.py), as in ours
    default   the same with the allocator left as it is
    ours      QAT() with the C++ kernels
    operators QAT() without them (PADDLEQAT_NATIVE=0)
    pact      QAT with PACT
    paddle    paddle.quantization.ImperativeQuantAware, over `default`
    evaluate, evaluate_float
              the forward pass of `ours` and `float` in evaluation, without a gradient
    torch, torch_fx
              torchvision's network in float, and quantized by torch.ao's prepare_qat_fx, run by
              another Python with --torch_python; ratios are to `torch`, never across frameworks

Each variant is a process of its own, and they take one step each in turn, round after round; ratios
are taken within a round. Peak memory is that of the process less what it had before the network was
built. What cannot run is left out and named. Writes a JSON (command, versions, commit, medians), a
CSV and a PNG.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Worker, paddle_version, rotated, versions, write_results

VARIANTS = (
    "float", "default", "ours", "operators", "pact", "paddle", "evaluate_float", "evaluate",
)  # fmt: skip
TORCH_VARIANTS = ("torch", "torch_fx")
BASE = {"evaluate": "evaluate_float", "paddle": "default", "torch_fx": "torch"}  # all others: float
WORKER = ROOT / "benchmarks" / "train_step_worker.py"


def main() -> None:
    """Measures and writes."""
    args = parse()
    rows = [measure(model, args) for model in args.models]
    facts = {
        "paddle": paddle_version(),
        **versions(args.torch_python, ("torch", "torchvision")),
        "unit": "ms, median over rounds; A_over_B is the median of the ratios within a round; "
        "bytes: growth of the process's peak from before the network was built",
    }
    write_results(rows, Path(args.output), facts, plot)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["mobilenet_v1"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--torch_python", help="a Python that has torch and torchvision")
    default = ROOT / "benchmarks" / "results" / f"train_step_{paddle_version()}"
    parser.add_argument("--output", default=str(default), help="path without an ending")
    return parser.parse_args()


def start(variant: str, model: str, args: argparse.Namespace) -> Worker:
    """The process of a variant."""
    python = args.torch_python if variant in TORCH_VARIANTS else sys.executable
    env = {"OMP_NUM_THREADS": str(args.threads)}
    if variant == "operators":
        env["PADDLEQAT_NATIVE"] = "0"
    sizes = (args.batch_size, args.image_size, args.threads)
    return Worker([python, str(WORKER), variant, model, *map(str, sizes)], env)


def measure(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model."""
    workers: dict[str, Worker] = {}
    for variant in [*args.variants, *(TORCH_VARIANTS if args.torch_python else ())]:
        try:
            workers[variant] = start(variant, model, args)
        except RuntimeError as error:
            print(f"{variant} of {model} left out: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    peaks: dict[str, int] = {}
    names = list(workers)
    for turn in range(args.rounds + 2):
        for name in rotated(names, turn):
            found = workers[name].work()
            peaks[name] = found["bytes"]
            if turn >= 2:
                seconds[name].append(found["seconds"])
    for worker in workers.values():
        worker.end()
    row: dict[str, Any] = {"model": model, "rounds": args.rounds}
    for name, values in seconds.items():
        base = BASE.get(name, "float")
        row[f"{name}_ms"] = statistics.median(values) * 1e3
        row[f"{name}_bytes"] = peaks[name]
        if base in seconds and base != name:
            ratios = [a / b for a, b in zip(values, seconds[base])]
            row[f"{name}_over_{base}"] = statistics.median(ratios)
            row[f"{name}_memory_over_{base}"] = peaks[name] / peaks[base]
    print(line(row), flush=True)
    return row


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    parts = []
    for key, value in row.items():
        if key.endswith("_ms"):
            name = key[:-3]
            base = BASE.get(name, "float")
            ratio = row.get(f"{name}_over_{base}")
            more = "" if ratio is None else f" ({ratio:.2f} of {base}"
            memory = row.get(f"{name}_memory_over_{base}")
            more += "" if memory is None else f", memory {memory:.2f})"
            parts.append(f"{name} {value:.0f} ms{more}")
    return f"{row['model']}: " + "  ".join(parts)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Bars: the step of each variant over the float step of its framework."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in (*VARIANTS, *TORCH_VARIANTS) if name not in BASE.values()]
    names = [name for name in names if name != "float" and any(f"{name}_ms" in row for row in rows)]
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.2))
    for axis, what in zip(axes, ("", "memory_")):
        for i, name in enumerate(names):
            key = f"{name}_{what}over_{BASE.get(name, 'float')}"
            values = [row.get(key) for row in rows]
            at = [j + (i - len(names) / 2) * 0.8 / len(names) for j in range(len(rows))]
            shown = [value or 0 for value in values]
            bars = axis.bar(at, shown, 0.8 / len(names), label=name)
            axis.bar_label(bars, [f"{v:.2f}" if v else "" for v in values], fontsize=7, rotation=90)
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.set_xticks(range(len(rows)), [row["model"] for row in rows])
        axis.set_ylabel("peak memory over float" if what else "time over float")
        axis.margins(y=0.15)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"One training step (or evaluation), Paddle {paddle_version()}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
