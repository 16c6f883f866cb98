"""What a machine lacks for scripts/reproduce.sh, all at once; run by that script.

It prints the number of GPUs (0: the CPU was asked for) and a line for each thing that is missing.
With --dry_run it downloads nothing.
Exit codes: 0; 1 if something is missing; 2 if the command line is wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings a zlib of its own)
from collections.abc import Iterator, Sequence
from pathlib import Path

import paddle
from paddle.utils import download

from data.errors import DataError
from data.imagenet import DEFAULT_DIR
from engine.config import TrainConfig
from engine.errors import EngineError
from engine.weights import weights_file
from models import ModelError, find_pretrained, model_info
from scripts.imagenet_table import END, START
from scripts.marks import split_at_marks
from scripts.reproduce_rows import (
    RESULTS,
    Row,
    changed_flags,
    config_of,
    find_rows,
    read_run,
    recipe_of,
)


def missing(
    rows: list[Row],
    flags: list[str],
    output_dir: Path,
    results: Path,
    readmes: Sequence[Path] = (),
    dry_run: bool = False,
) -> tuple[list[str], int]:
    """One line per thing that is missing for the rows that are not finished, and the GPUs.

    Weights that Paddle offers are downloaded here, so that the hours of training do not begin
    without them; with `dry_run` it is only looked whether they are in its cache.
    """
    problems = [line for readme in readmes for line in _marks(readme)]
    gpus = 0
    for row in rows:
        folder = output_dir / row.name
        cfg = config_of(row, flags)
        problems += _other_recipe(row, cfg, folder, results)
        if (folder / "summary.json").is_file():
            continue
        if cfg.use_gpu:
            gpus = paddle.device.cuda.device_count()
            problems += [] if gpus else [_no_gpu()]
        problems += _data(cfg)
        if not (folder / "latest.pdparams").is_file():
            problems += _weights(row, cfg, dry_run)
    return list(dict.fromkeys(problems)), gpus


def _other_recipe(row: Row, cfg: TrainConfig, folder: Path, results: Path) -> Iterator[str]:
    recipe = recipe_of(cfg)
    changed = changed_flags(recipe, recipe_of(config_of(row)))
    if changed and results.resolve() == RESULTS.resolve():
        yield (
            f"--{changed[0]} makes another recipe than {row.config}: name --results and --readme, "
            f"so that its figures do not land in {results.name} and the READMEs as published rows"
        )
    run = read_run(folder)
    if run is not None:
        changed = changed_flags(recipe, run.get("recipe") or {})
        if changed:
            yield (
                f"{folder} holds a run with another {changed[0]} "
                f"({(run.get('recipe') or {}).get(changed[0])!r}, wanted is "
                f"{recipe[changed[0]]!r}): move it away, or name another --output_dir"
            )


def _no_gpu() -> str:
    if not paddle.is_compiled_with_cuda():
        return (
            f"GPU: this Paddle ({paddle.__version__}) is built for the CPU; on a machine with a "
            "GPU: pip install -r requirements-gpu.txt"
        )
    return "GPU: Paddle sees none (nvidia-smi and CUDA_VISIBLE_DEVICES tell more)"


def _data(cfg: TrainConfig) -> Iterator[str]:
    if cfg.data != "imagenet":
        return
    folder = Path(cfg.data_dir) if cfg.data_dir is not None else DEFAULT_DIR
    for name in ("train_list.txt", "train", "val_list.txt", "val"):
        if not (folder / name).exists():
            yield (
                f"ImageNet: {folder / name}; that folder holds train/, val/ and their lists "
                "(a line: relative/path label); --data_dir names another one"
            )
            return


def _marks(readme: Path) -> Iterator[str]:
    try:
        split_at_marks(readme, START, END)
    except EngineError as error:
        yield f"marks of the table: {error}"


def _weights(row: Row, cfg: TrainConfig, dry_run: bool) -> Iterator[str]:
    if cfg.trains_from_scratch:
        return
    try:
        if cfg.pretrained_model is not None:
            weights_file(Path(cfg.pretrained_model))
            return
        info = model_info(cfg.model)
        if not dry_run or info.weights_url is None:
            find_pretrained(info)
            return
        url = info.weights_url[0]
        cached = Path(download.WEIGHTS_HOME) / url.rsplit("/", 1)[-1]
        if not cached.is_file():
            yield f"weights of {row.name}: {cached}; the run itself downloads them from {url}"
    except (ModelError, EngineError) as error:
        yield f"weights of {row.name}: {error}"


def main() -> int:
    """Print what is missing; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--readme", type=Path, nargs="*", default=[])
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[])
    given = parser.parse_args()
    download.logger.setLevel(logging.CRITICAL)  # what it could not fetch is said once, below
    try:
        rows = find_rows(given.rows)
        problems, gpus = missing(
            rows, given.flags, given.output_dir, given.results, given.readme, given.dry_run
        )
    except (DataError, EngineError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    print(gpus)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
