"""The ImageNet figures of scripts/reproduce.sh, and the table of them in both READMEs.

    python -m scripts.imagenet_table                          # fills the READMEs of the project
    python -m scripts.imagenet_table --collect OUTPUT_DIR     # takes figures of finished runs first

The figures are in docs/results/imagenet.json, one entry a row: the command and what run.json and
summary.json of its folder say. What stands between the two marks in a README is replaced.
"""

from __future__ import annotations

import argparse
import sys
import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings a zlib of its own)
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.files import read_json, write_atomically, write_json
from scripts.reproduce_rows import NEUTRAL, RESULTS, ROOT, ROWS, Row, read_run

READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
START, END = "<!-- imagenet -->", "<!-- /imagenet -->"

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


def collect(output_dir: Path, results: Path, names: list[str]) -> None:
    """Put the figures of finished runs into the results file; other rows there stay.

    Raises:
        EngineError: a run is not finished, or its file failed the check against the network.
    """
    rows = _read(results)
    for name in names:
        folder = output_dir / name
        run = read_run(folder)
        summary_path = folder / "summary.json"
        if run is None or not summary_path.is_file():
            raise EngineError(f"{folder}: no finished run (summary.json and run.json)")
        summary = read_json(summary_path)
        if not summary["verified"]:
            raise EngineError(
                f"{summary_path}: the int8 file is not the network that was trained (see "
                "verification there); its figures are not taken"
            )
        processes, command = _launch(folder)
        rows[name] = {
            "command": command,
            "processes": processes,
            "seed": run["recipe"]["seed"],
            "versions": run["versions"],
            "git_commit": run["git_commit"],
            # Without folders and the like, which say something of the machine and not of the run.
            "recipe": {k: v for k, v in run["recipe"].items() if k not in NEUTRAL},
            "summary": {key: value for key, value in summary.items() if key != "verification"},
        }
    results.parent.mkdir(parents=True, exist_ok=True)
    write_json(results, {row.name: rows[row.name] for row in ROWS if row.name in rows})


def _launch(folder: Path) -> tuple[int, str]:
    """Processes and command of a run, as scripts/reproduce.sh leaves them in launch.txt."""
    path = folder / "launch.txt"
    try:
        processes, command = path.read_text(encoding="utf-8").splitlines()
        return int(processes), command
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: wanted are two lines, processes and command") from error


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
    if not readme.is_file():
        raise EngineError(f"{readme}: no such file")
    text = readme.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise EngineError(
            f"{readme}: wanted are the marks {START} and {END}, once and in this order"
        )
    before, after = text.split(START)[0], text.split(END)[1]
    whole = f"{before}{START}\n{table(rows, language)}\n{END}{after}"
    write_atomically(readme, lambda name: Path(name).write_text(whole, encoding="utf-8"))


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
    try:
        if given.collect is not None:
            collect(given.collect, given.results, given.rows)
        for readme in given.readme:
            fill(readme, language_of(readme), _read(given.results))
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
