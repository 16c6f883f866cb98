"""Images per second from JPEG files to a float32 batch, of our reader and of others.

    python benchmarks/reader.py --images FOLDER --torch_python PYTHON

FOLDER holds JPEG files, ImageNet's own or of that size. Each is read, decoded, and brought to
3 x 224 x 224 by ImageNet's training transform (random resized crop, mirror, normalisation) or by
that of evaluation (short side to 256, centre crop, normalisation); 32 make a batch. In one thread:

    ours                  --antialias False: OpenCV's resize
    paddle_cv2            paddle.vision.transforms on what OpenCV read
    torch_plain           torchvision's decode_jpeg and transforms.v2, antialias=False
    ours_antialias        --antialias True: Pillow's resize
    paddle_pil            paddle.vision.transforms on what Pillow read
    torch                 torchvision's decode_jpeg and transforms.v2, antialias=True
    decode                OpenCV decodes the whole image, and nothing else

and with several workers (``--workers``), whole batches at the main process:

    ours_loader           our threads
    paddle_loader         paddle.io.DataLoader over paddle_cv2, processes
    torch_loader          torch's DataLoader over torch_plain, processes

Each variant is a process of its own; they take turns, a pass over all images each; ratios are taken
within a round, of ours to the others that resize in the same way. What cannot run is left out and
named. Writes a JSON (command, versions, commit, medians), a CSV and a PNG.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from side_by_side import ROOT, Rows, Worker, paddle_version, rotated, versions, write_results

# Ours, and those that resize in the same way.
RIVALS = {
    "ours": ("paddle_cv2", "torch_plain"),
    "ours_antialias": ("paddle_pil", "torch"),
    "ours_loader": ("paddle_loader", "torch_loader"),
}
VARIANTS = [name for ours, others in RIVALS.items() for name in (ours, *others)] + ["decode"]
PHASES = ("train", "evaluate")
WORKER = ROOT / "benchmarks" / "reader_worker.py"


def main() -> None:
    """Measures and writes."""
    args = parse()
    files = sorted(args.images.rglob("*.jp*g")) + sorted(args.images.rglob("*.JP*G"))
    if not files:
        raise SystemExit(f"--images={args.images}: no *.jpg or *.jpeg in it")
    rows: Rows = [measure(phase, args) for phase in PHASES]
    facts = {
        "paddle": paddle_version(),
        **versions(sys.executable, ("opencv-python-headless", "simplejpeg", "cykooz.resizer")),
        **versions(args.torch_python, ("torch", "torchvision")),
        "images": len(files),
        "bytes_per_image": round(statistics.mean(file.stat().st_size for file in files)),
        "workers": args.workers,
        "unit": "images/s, median over rounds; A_over_B is the median of the ratios within a round",
    }
    write_results(rows, args.output, facts, plot)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--workers", type=int, default=2, help="of the variants called loader")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--torch_python", help="a Python that has torch and torchvision")
    default = ROOT / "benchmarks" / "results" / "reader"
    parser.add_argument("--output", type=Path, default=default, help="path without an ending")
    return parser.parse_args()


def measure(phase: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one transform."""
    workers: dict[str, Worker] = {}
    for name in args.variants:
        python = args.torch_python if name.startswith("torch") else sys.executable
        if python is None:
            print(f"{name} left out: --torch_python is not given")
            continue
        command = [python, str(WORKER), name, phase, str(args.images), str(args.workers)]
        try:
            workers[name] = Worker(command, {"OMP_NUM_THREADS": "1"})
        except RuntimeError as error:
            print(f"{name} left out: {error}")
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(args.rounds + 1):
        for name in rotated(list(workers), turn):
            rate = workers[name].work()["images_per_second"]
            if turn > 0:  # the first fills caches
                rates[name].append(rate)
    for worker in workers.values():
        worker.end()
    row: dict[str, Any] = {"transform": phase, "rounds": args.rounds}
    for name, values in rates.items():
        row[name] = statistics.median(values)
    for ours, others in RIVALS.items():
        for other in others:
            if ours in rates and other in rates:
                ratios = [a / b for a, b in zip(rates[ours], rates[other])]
                row[f"{ours}_over_{other}"] = statistics.median(ratios)
    print("  ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
    return row


def shown(value: Any) -> str:
    """A figure for people: rates are whole, ratios have two places."""
    if isinstance(value, float):
        return f"{value:.0f}" if value > 20 else f"{value:.2f}"
    return str(value)


def plot(rows: Rows, path: str) -> None:
    """Bars: images per second of each variant, a panel per transform."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(rows), figsize=(6 * len(rows), 4), squeeze=False)
    for axes, row in zip(panels[0], rows):
        names = [name for name in VARIANTS if name in row]
        colors = ["tab:blue" if name in RIVALS else "tab:gray" for name in names]
        bars = axes.barh(names, [row[name] for name in names], color=colors)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("images/s")
        axes.set_title(f"{row['transform']} transform")
    figure.suptitle("Reading JPEG files to float32 batches (loaders: several workers)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
