"""The ImageNet figures of scripts/reproduce.sh, and the table of them in both READMEs.

    python -m scripts.imagenet_table                          # fills the READMEs of the project
    python -m scripts.imagenet_table --collect OUTPUT_DIR     # takes figures of finished runs first

The figures are in docs/results/imagenet.json, one entry a row: the command and what run.json and
summary.json of its folder say. What stands between the two marks in a README is replaced.

Exit codes: 0; 1 if the int8 file of a run is not the network, whose figures are then left out; 2
with one line if a run is not finished or a file cannot be used.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings a zlib of its own)
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.files import read_json, write_json
from scripts.marks import replace_between
from scripts.reproduce_rows import (
    NEUTRAL,
    RESULTS,
    ROOT,
    ROWS,
    Row,
    config_of,
    find_rows,
    read_run,
    recipe_of,
)

READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
START, END = "<!-- imagenet -->", "<!-- /imagenet -->"
# Flags that name folders and files of the machine that ran the command.
PLACES = {"config", "data_dir", "model_save_dir", "resume"}

TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "none": "**Nobody has run these recipes with this project yet**: they need ImageNet and a "
        "GPU machine. The published\nfigures are those of the reference recipes; the last two "
        "columns are empty until someone has run the command.",
        "some": "The published figures are those of the reference recipes; the last two columns "
        "are from\n`docs/results/imagenet.json`, which also names versions, commit and flags.",
        "head": "| model | method | published FP32 Top1/Top5 | published int8 | command | "
        "FP32 here | int8 here |",
        "not_run": "not run",
        "note": "{model}: seed {seed}, {processes} process(es), {images:,} images, "
        "Paddle {paddle}.",
    },
    "zh": {
        "none": "**还没有人用本项目跑过这些配方**：它们需要 ImageNet 和带 GPU 的机器。"
        "公布的数字来自参考配方；\n在有人跑过命令之前，最后两列空着。",
        "some": "公布的数字来自参考配方；最后两列取自 `docs/results/imagenet.json`，"
        "\n其中还记有版本、提交和参数。",
        "head": "| 模型 | 方法 | 公布的 FP32 Top1/Top5 | 公布的 int8 | 命令 | "
        "本项目 FP32 | 本项目 int8 |",
        "not_run": "未运行",
        "note": "{model}：种子 {seed}，{processes} 个进程，{images:,} 张图，Paddle {paddle}。",
    },
}


def collect(output_dir: Path, results: Path, names: list[str]) -> list[str]:
    """Put the figures of finished runs into the results file; other rows there stay.

    Returns:
        A line for each run whose int8 file failed the check against the network; its figures are
        not taken.

    Raises:
        EngineError: a run is not finished.
    """
    rows = _read(results)
    failed = []
    for row in find_rows(names) if names else []:
        name = row.name
        folder = output_dir / name
        run = read_run(folder)
        summary_path = folder / "summary.json"
        if run is None or not summary_path.is_file():
            raise EngineError(f"{folder}: no finished run (summary.json and run.json)")
        summary = read_json(summary_path)
        if summary["verified"] is not True:
            failed.append(
                f"{name} failed: the int8 file is not the network that was trained (see "
                f"verification in {summary_path}); its figures are not taken"
            )
            continue
        processes = _processes(folder)
        recipe = _public(run["recipe"])
        rows[name] = {
            "command": _command(row, recipe, processes),
            "processes": processes,
            "seed": recipe["seed"],
            "versions": run["versions"],
            "git_commit": run["git_commit"],
            "recipe": {k: v for k, v in recipe.items() if k not in NEUTRAL},
            "summary": {key: value for key, value in summary.items() if key != "verification"},
        }
    if len(failed) < len(names):
        results.parent.mkdir(parents=True, exist_ok=True)
        write_json(results, {row.name: rows[row.name] for row in ROWS if row.name in rows})
    return failed


def _processes(folder: Path) -> int:
    """Processes of a run, as scripts/reproduce.sh leaves their number in launch.txt."""
    path = folder / "launch.txt"
    try:
        return int(path.read_text(encoding="utf-8").split("\n")[0])
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: wanted is a line with the number of processes") from error


def _public(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what it says of the machine: folders, and where the weights lay."""
    public = {name: value for name, value in recipe.items() if name not in PLACES}
    if public.get("pretrained_model") is not None:
        public["pretrained_model"] = Path(public["pretrained_model"]).name
    return public


def _command(row: Row, recipe: dict[str, Any], processes: int) -> str:
    """The command that has this recipe, as someone else would type it."""
    words = ["python"]
    if processes > 1:
        gpus = ",".join(map(str, range(processes)))
        words += ["-m", "paddle.distributed.launch", f"--gpus={gpus}"]
    words += ["train.py", "--config", row.config]
    own = recipe_of(config_of(row))
    for name, value in recipe.items():
        if value is not None and value != own.get(name):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{name}={text}")
    return shlex.join(words)


def table(rows: dict[str, Any], language: str) -> str:
    """What stands between the marks: a sentence, the table, a line for each row that was run."""
    text = TEXTS[language]
    lines = [text["some" if rows else "none"], "", text["head"], "|---|---|---|---|---|---|---|"]
    notes = []
    for row in ROWS:
        found = rows.get(row.name)
        here = [text["not_run"]] * 2
        if found is not None:
            here = [_measured(found["summary"], stage) for stage in ("fp32", "int8")]
            notes.append(_note(text["note"], row, found))
        cells = [
            row.model,
            row.method[language],
            _percent(row.fp32),
            _percent(row.int8),
            f"`bash scripts/reproduce.sh {row.name}`",
            *here,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _percent(figures: tuple[float, float]) -> str:
    return f"{figures[0]:.2f}/{figures[1]:.2f}"


def _measured(summary: dict[str, Any], stage: str) -> str:
    found = summary[stage]
    return "" if found is None else _percent((100 * found["top1"], 100 * found["top5"]))


def _note(text: str, row: Row, found: dict[str, Any]) -> str:
    return text.format(
        model=row.model,
        seed=found["seed"],
        processes=found["processes"],
        images=found["summary"]["num_images"],
        paddle=found["versions"]["paddle"],
    )


def fill(readme: Path, language: str, rows: dict[str, Any]) -> None:
    """Replace what stands between the marks of one README.

    Raises:
        EngineError: it is not there, or does not hold each mark once.
    """
    replace_between(readme, START, END, table(rows, language))


def language_of(readme: Path) -> str:
    """The language of a README by its name: NAME.zh-CN.md is Chinese."""
    return "zh" if ".zh" in readme.name else "en"


def _read(results: Path) -> dict[str, Any]:
    rows = read_json(results) if results.is_file() else {}
    if not isinstance(rows, dict):
        raise EngineError(f"{results}: holds no JSON object")
    return rows


def main() -> int:
    """Collect and fill; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collect", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, nargs="+", default=list(READMES.values()))
    parser.add_argument("--rows", nargs="*", default=[])
    given = parser.parse_args()
    failed: list[str] = []
    try:
        if given.collect is not None:
            failed = collect(given.collect, given.results, given.rows)
        for readme in given.readme:
            fill(readme, language_of(readme), _read(given.results))
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
