"""Accuracy of the ways to int8 on Fashion-MNIST: float, calibration, QAT, PACT, distillation.

    python benchmarks/accuracy.py --data_dir data/fashion-mnist --processes 2

Runs train.py, export.py and eval.py as a user would, a row at a time. Per model and seed one float
network is trained; every other row starts from its weights, sees the images in the same order and
ends with the exported int8 file, which Paddle Inference runs on all test images. Writes

    OUT.json      one entry per row: flags, command, seed, commit, versions, seconds, Top1
    OUT.csv       the same figures, without the commands
    OUT.png       drop against float, one point per seed
    DOC           two tables, between the markers (mean and sample standard deviation over seeds)

A row that OUT.json has already is not run again, and a run that was cut off goes on where it was.
Without --data_dir the small sample that ships is used.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"

FLOAT, CALIBRATION = "float", "calibration"

# What each way to int8 adds to the flags that all have in common.
QAT_METHODS: dict[str, list[str]] = {
    "qat": [],
    "qat_pact": ["--use_pact=True"],
    "qat_pact_calibrated": ["--use_pact=True", "--pact_init=calibrated"],
    "qat_distill": ["--distill=True"],
}
METHODS = (CALIBRATION, *QAT_METHODS)
TITLES = {
    FLOAT: "float",
    CALIBRATION: "calibration only",
    "qat": "QAT",
    "qat_pact": "QAT, PACT (α = 100)",
    "qat_pact_calibrated": "QAT, PACT (α calibrated)",
    "qat_distill": "QAT, distillation",
}

# Two-sided 95 % point of Student's t by the number of seeds.
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}

FIGURES = ("fp32", "qat", "int8", "int8_onednn")
FACTS = ("model", "method", "weight_bits", "activation_bits", "seed")


class Bits(NamedTuple):
    """Width of weights and of activations."""

    weight: int
    activation: int

    @classmethod
    def parse(cls, text: str) -> Bits:
        """``w4a8`` and the like."""
        weight, _, activation = text.lower().removeprefix("w").partition("a")
        if not (weight.isdigit() and activation.isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r}; allowed is like w8a8")
        return cls(int(weight), int(activation))

    def __str__(self) -> str:
        return f"W{self.weight}A{self.activation}"


FLOAT_BITS = Bits(32, 32)


class Key(NamedTuple):
    """Which row."""

    model: str
    method: str
    bits: Bits
    seed: int

    @property
    def folder(self) -> str:
        """Where it is trained, below --runs."""
        parts = [self.model, str(self.seed), self.method]
        return "/".join(parts if self.method == FLOAT else [*parts, str(self.bits).lower()])

    def __str__(self) -> str:
        bits = "" if self.method == FLOAT else f" {self.bits}"
        return f"{self.model} {self.method}{bits} seed {self.seed}"


Row = dict[str, Any]


def main() -> int:
    """Run what is missing, write what there is; returns the exit code."""
    args = parse()
    store = Store(Path(f"{args.out}.json"))
    float_keys = [Key(m, FLOAT, FLOAT_BITS, s) for s in args.seeds for m in args.models]
    keys = [
        Key(model, method, bits, seed)
        for seed in args.seeds
        for bits in args.bits
        for method in args.methods
        for model in args.models
    ]
    failed: list[Key] = []

    def measure(key: Key) -> None:
        try:
            if store.has(key, flags_of(key, args)):
                return
            row = run(key, args)
        except RunError as error:
            failed.append(key)
            print(f"error: {error}", file=sys.stderr, flush=True)
            return
        store.add(row)
        print(f"{key}: {row['top1']} in {row['seconds']:.0f} s", flush=True)

    if not args.tables_only:
        with ThreadPoolExecutor(args.processes) as pool:
            list(pool.map(measure, float_keys))
            list(pool.map(measure, keys))
    if store.rows:
        write(store.rows, args)
    return 1 if failed else 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data_dir", help="folder with the four files of Fashion-MNIST (default: the sample)")
    add("--models", nargs="+", default=["mobilenet_v1_x0_25", "mobilenet_v3_small_x0_5"])
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--bits", nargs="+", type=Bits.parse, default=[Bits(8, 8), Bits(4, 8)])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--image_size", type=int, default=40)
    add("--batch_size", type=int, default=128)
    add("--fp32_epochs", type=int, default=6)
    add("--fp32_lr", type=float, default=0.1)
    add("--num_epochs", type=int, default=1, help="epochs of QAT")
    add("--lr", type=float, default=0.01, help="learning rate of QAT")
    add("--pact_lr", type=float, help="of qat_pact, whose alphas take 1000 times as much")
    add("--max_steps", type=int, help="steps of each stage, to try things out")
    add("--verify_images", type=int, default=256, help="as the flag of train.py")
    add("--processes", type=int, default=1, help="runs at the same time")
    add("--paddle_depthwise", action="store_true", help="leave out small_depthwise.py (slower)")
    add("--runs", default="output_models/accuracy", help="folder for checkpoints and logs")
    add("--out", default=str(ROOT / "benchmarks" / "results" / "accuracy"), help="without ending")
    add("--doc", default=str(ROOT / "docs" / "accuracy.md"), help="where the tables go, or none")
    add("--tables_only", action="store_true", help="run nothing, write tables from OUT.json")
    return parser.parse_args(argv)


# --- running ----------------------------------------------------------------------------------


class RunError(Exception):
    """A command failed, or rows do not belong together."""


def run(key: Key, args: argparse.Namespace) -> Row:
    """Run the commands of a row and collect its figures.

    Raises:
        RunError: one of them failed.
    """
    folder = Path(args.runs) / key.folder
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = calibrate(key, args, folder) if key.method == CALIBRATION else train(key, args, folder)
    figures, commands = found
    seconds = time.perf_counter() - start
    return {
        "model": key.model,
        "method": key.method,
        "weight_bits": key.bits.weight,
        "activation_bits": key.bits.activation,
        "seed": key.seed,
        **figures,
        "seconds": round(seconds, 1),
        "flags": flags_of(key, args),
        "commands": [shown(command, args) for command in commands],
        **circumstances(args),
    }


def train(key: Key, args: argparse.Namespace, folder: Path) -> tuple[Row, list[list[str]]]:
    """Figures and commands of a float or QAT row."""
    words = [*flags_of(key, args), f"--model_save_dir={folder}", "--resume=auto"]
    if key.method != FLOAT:
        words.append(f"--pretrained_model={float_weights(key, args)}")
    command = ["train.py", *data_flags(args), *words]
    call(command, args, folder / "output.log", allowed=(0, 1))
    summary = read(folder / "summary.json")
    if key.method == FLOAT:
        top1 = {"fp32": summary["fp32"]["top1"]}
        return {"top1": top1, "num_images": summary["num_images"]}, [command]
    figures = {
        "top1": {name: (summary[name] or {}).get("top1") for name in FIGURES},
        "agreement_int8_qat": summary["agreement_int8_qat"],
        "verified": summary["verified"],
        "sizes_bytes": summary["sizes_bytes"],
        "num_images": summary["num_images"],
    }
    return figures, [command]


def calibrate(key: Key, args: argparse.Namespace, folder: Path) -> tuple[Row, list[list[str]]]:
    """Figures and commands of a row without training."""
    prefix = folder / "int8"
    export = ["export.py", float_weights(key, args), *flags_of(key, args), f"--output={prefix}"]
    export += data_flags(args)
    commands = [export]
    verified = call(export, args, folder / "output.log", allowed=(0, 1)) == 0
    top1: dict[str, float | None] = dict.fromkeys(FIGURES)
    images = None
    for name, engine in (("int8", "paddle"), ("int8_onednn", "onednn")):
        result = folder / f"{engine}.json"
        command = ["eval.py", str(prefix), f"--engine={engine}", f"--output={result}"]
        command += ["--use_gpu=False", "--num_workers=0", *data_flags(args)]
        commands.append(command)
        call(command, args, folder / "output.log")
        found = read(result)
        top1[name], images = found["top1"], found["num_images"]
    top1["fp32"] = read(Path(float_weights(key, args)).parent / "summary.json")["fp32"]["top1"]
    return {"top1": top1, "verified": verified, "num_images": images}, commands


def flags_of(key: Key, args: argparse.Namespace) -> list[str]:
    """The flags that make a row what it is; paths are none of them."""
    common = [f"--seed={key.seed}", "--use_gpu=False", "--num_workers=0"]
    bits = [f"--weight_bits={key.bits.weight}", f"--activation_bits={key.bits.activation}"]
    if key.method == CALIBRATION:
        return [*common, *bits]
    lr = args.pact_lr if key.method == "qat_pact" and args.pact_lr is not None else args.lr
    words = [
        f"--model={key.model}",
        "--data=fashion_mnist",
        *common,
        f"--image_size={args.image_size}",
        "--channels=1",
        "--mean=0.286",
        "--std=0.353",
        f"--batch_size={args.batch_size}",
        "--lr_strategy=cosine_decay",
        "--l2_decay=1e-4",
        f"--lr={lr:g}",
        "--log_period=100",
        "--keep_checkpoints=1",
    ]
    if args.max_steps is not None:
        words.append(f"--max_steps={args.max_steps}")
    if key.method == FLOAT:
        # train.py always ends with QAT. One epoch of it is the least; its outcome is not used.
        float_stage = [f"--fp32_epochs={args.fp32_epochs}", f"--fp32_lr={args.fp32_lr:g}"]
        return [*words, *float_stage, "--num_epochs=1", "--verify_images=1"]
    recipe = [f"--num_epochs={args.num_epochs}", f"--verify_images={args.verify_images}"]
    return [*words, *bits, *recipe, *QAT_METHODS[key.method]]


def data_flags(args: argparse.Namespace) -> list[str]:
    """Where the images are."""
    return [] if args.data_dir is None else [f"--data_dir={args.data_dir}"]


def float_weights(key: Key, args: argparse.Namespace) -> str:
    """Path of the float network of the same model and seed."""
    float_key = key._replace(method=FLOAT, bits=FLOAT_BITS)
    return str(Path(args.runs) / float_key.folder / "fp32_model.pdparams")


def call(
    command: list[str], args: argparse.Namespace, log: Path, allowed: Iterable[int] = (0,)
) -> int:
    """Run one of the scripts, its output added to ``log``; returns its exit code.

    Raises:
        RunError: the code is not allowed.
    """
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, *launcher(args), *on_disk(command)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    if done.returncode not in allowed:
        text = log.read_text(encoding="utf-8").strip().splitlines()
        raise RunError(f"{' '.join(command)} ended with {done.returncode}: {text[-1:]}, see {log}")
    return done.returncode


def launcher(args: argparse.Namespace) -> list[str]:
    """What stands between python and the script."""
    return [] if args.paddle_depthwise else [str(ROOT / "benchmarks" / "small_depthwise.py")]


def on_disk(command: list[str]) -> list[str]:
    """The command with the script's own folder before its name."""
    return [str(ROOT / command[0]), *command[1:]]


def shown(command: list[str], args: argparse.Namespace) -> str:
    """The command as it can be typed anywhere, with RUNS and DATA_DIR for the two folders."""
    words = " ".join(["python", *(["benchmarks/small_depthwise.py"] * bool(launcher(args)))])
    text = f"{words} {' '.join(command)}".replace(str(Path(args.runs)), "RUNS")
    return text if args.data_dir is None else text.replace(str(args.data_dir), "DATA_DIR")


def circumstances(args: argparse.Namespace) -> Row:
    """With what a row was made."""
    names = ("paddlepaddle", "numpy")
    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "data": "sample" if args.data_dir is None else "full",
    }


def git(*words: str) -> str | None:
    """Answer of git about this checkout, or None."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


class Store:
    """The rows in OUT.json.

    Args:
        path: the file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = read(path)["rows"] if path.is_file() else []
        self._lock = threading.Lock()

    def has(self, key: Key, flags: list[str]) -> bool:
        """Whether a row is there.

        Raises:
            RunError: it is, but was made with other flags.
        """
        for row in self.rows:
            if key_of(row) != key:
                continue
            if row["flags"] != flags:
                others = sorted(set(row["flags"]) ^ set(flags))
                raise RunError(f"{self.path} has {key} with other flags ({', '.join(others)})")
            return True
        return False

    def add(self, row: Row) -> None:
        """Keep a row, on disk too."""
        with self._lock:
            self.rows.append(row)
            self.rows.sort(key=order)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(".tmp")
            text = json.dumps({"rows": self.rows}, indent=1, ensure_ascii=False) + "\n"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.path)


def key_of(row: Row) -> Key:
    """Which row it is."""
    bits = Bits(row["weight_bits"], row["activation_bits"])
    return Key(row["model"], row["method"], bits, row["seed"])


def order(row: Row) -> tuple[Any, ...]:
    """Sorts rows as the tables have them: float, W8A8, W4A8; methods in the order of METHODS."""
    key = key_of(row)
    bits = (-key.bits.weight, -key.bits.activation)
    return key.model, bits, (FLOAT, *METHODS).index(key.method), key.seed


# --- tables -----------------------------------------------------------------------------------


class Sample(NamedTuple):
    """Mean, sample standard deviation and half of the 95 % interval of the mean, of n values."""

    mean: float
    sd: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """With fewer than two values neither spread nor interval is known: both are NaN."""
        n = len(values)
        if n < 2:
            return cls(values[0], math.nan, math.nan, n)
        sd = statistics.stdev(values)
        return cls(statistics.fmean(values), sd, T_95.get(n, 1.96) * sd / math.sqrt(n), n)

    def text(self, sign: bool = False) -> str:
        """In percent (points), as mean ± sd."""
        mean = f"{100 * self.mean:{'+' if sign else ''}.2f}"
        return mean if self.n < 2 else f"{mean} ± {100 * self.sd:.2f}"

    @property
    def differs(self) -> bool:
        """True where the 95 % interval of the mean leaves out zero."""
        return abs(self.mean) > self.half


def int8_top1(rows: list[Row], model: str, method: str, bits: Bits) -> dict[int, float]:
    """Top1 of the int8 file (of the network, for float) by seed; rows without one are left out."""
    figure = "fp32" if method == FLOAT else "int8"
    found = {}
    for row in rows:
        key = key_of(row)
        if (key.model, key.method, key.bits) == (model, method, bits):
            if row["top1"][figure] is not None:
                found[key.seed] = row["top1"][figure]
    return found


def paired(a: dict[int, float], b: dict[int, float]) -> Sample | None:
    """Differences of two methods over the seeds that both have; None if there is no such seed."""
    seeds = sorted(set(a) & set(b))
    return Sample.of([a[seed] - b[seed] for seed in seeds]) if seeds else None


def table(rows: list[Row], bits: Bits) -> str:
    """A Markdown table: per model and method Top1, and the differences to float and to plain QAT.

    Differences are paired by seed. A bold one has a 95 % interval (Student's t) without zero.
    """
    head = ["model", "way", "seeds", "Top1, %", "against float, points", "against QAT, points"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|--:|--:|--:|--:|"]
    for model in sorted({row["model"] for row in rows}):
        base = int8_top1(rows, model, FLOAT, FLOAT_BITS)
        plain = int8_top1(rows, model, "qat", bits)
        for method in (FLOAT, *METHODS):
            found = base if method == FLOAT else int8_top1(rows, model, method, bits)
            if not found:
                continue
            sample = Sample.of([found[seed] for seed in sorted(found)])
            cells = [model, TITLES[method], str(sample.n), sample.text()]
            cells.append("" if method == FLOAT else difference(paired(found, base)))
            cells.append("" if method in (FLOAT, "qat") else difference(paired(found, plain)))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(sample: Sample | None) -> str:
    """A paired difference as text."""
    if sample is None:
        return ""
    return f"**{sample.text(sign=True)}**" if sample.differs else sample.text(sign=True)


def widths(rows: list[Row]) -> list[Bits]:
    """The widths that were measured, widest first."""
    return sorted({key_of(row).bits for row in rows if row["method"] != FLOAT}, reverse=True)


def write(rows: list[Row], args: argparse.Namespace) -> None:
    """CSV, PNG and the tables of the document."""
    with open(f"{args.out}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*FACTS, *(f"top1_{name}" for name in FIGURES), "verified", "seconds"])
        for row in rows:
            figures = [row["top1"].get(name) for name in FIGURES]
            facts = [row[name] for name in FACTS]
            writer.writerow([*facts, *figures, row.get("verified"), row["seconds"]])
    plot(rows, f"{args.out}.png")
    written = [f"{args.out}.csv", f"{args.out}.png"]
    if args.doc != "none":
        parts = [f"### {bits}\n\n{table(rows, bits)}" for bits in widths(rows)]
        insert(Path(args.doc), "\n\n".join(parts))
        written.append(args.doc)
    print("written: " + ", ".join(written))


def insert(path: Path, text: str) -> None:
    """Put text between the markers of a file.

    Raises:
        SystemExit: they are not there.
    """
    whole = path.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"error: {path} needs the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def plot(rows: list[Row], path: str) -> None:
    """Change against the float network: one panel per model and width, one point per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = sorted({row["model"] for row in rows})
    bits = widths(rows)
    if not bits:
        return
    size = (5.5 * len(bits), 2.6 * len(models) + 0.6)
    figure, axes = plt.subplots(len(models), len(bits), figsize=size, squeeze=False)
    for line, model in zip(axes, models):
        base = int8_top1(rows, model, FLOAT, FLOAT_BITS)
        for panel, width in zip(line, bits):
            samples = {m: int8_top1(rows, model, m, width) for m in METHODS}
            shown_methods = [m for m in METHODS if set(samples[m]) & set(base)]
            for y, method in enumerate(shown_methods):
                found = samples[method]
                drops = [100 * (found[s] - base[s]) for s in sorted(set(found) & set(base))]
                panel.plot(drops, [y] * len(drops), "o", alpha=0.6)
                panel.plot([statistics.fmean(drops)], [y], "k|", markersize=16)
            panel.axvline(0, color="grey", linewidth=1)
            panel.set_yticks(range(len(shown_methods)), [TITLES[m] for m in shown_methods])
            panel.set_ylim(len(shown_methods) - 0.5, -0.5)
            panel.set_title(f"{model}, {width}", fontsize=10)
            panel.set_xlabel("Top1 of the int8 file minus float, points")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
