"""Write the figures of the demo into both READMEs: python -m scripts.update_readme_table.

They come from docs/results/demo.json, which is the summary.json of a run of scripts/demo.sh. What
stands between the two marks in a README is replaced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from scripts.marks import replace_between

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "results" / "demo.json"
START, END = "<!-- demo -->", "<!-- /demo -->"

# Per README: head of the table, names of its rows, and the line below it.
TEXTS: dict[str, dict[str, Any]] = {
    "README.md": {
        "head": "| stage | Top1 | Top5 | `.pdiparams` | same Top1 as the fake-quant network |",
        "rows": (
            "float network",
            "fake-quant network",
            "int8 file, plain CPU",
            "int8 file, oneDNN",
        ),
        "source": "LeNet, {images:,} test images of the sample; from `docs/results/demo.json`.",
    },
    "README.zh-CN.md": {
        "head": "| 阶段 | Top1 | Top5 | `.pdiparams` | 与伪量化网络 Top1 相同 |",
        "rows": ("浮点网络", "伪量化网络", "int8 文件，普通 CPU", "int8 文件，oneDNN"),
        "source": "LeNet，样本中的 {images:,} 张测试图；数据来自 `docs/results/demo.json`。",
    },
}


def table(summary: dict[str, Any], text: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    sizes = summary["sizes_bytes"]
    columns = (
        ("fp32", sizes["fp32"], None),
        ("qat", None, None),
        ("int8", sizes["int8"], summary["agreement_int8_qat"]),
        ("int8_onednn", sizes["int8"], summary["agreement_onednn_qat"]),
    )
    lines = [text["head"], "|---|---|---|---|---|"]
    for name, (stage, size, agreement) in zip(text["rows"], columns):
        found = summary[stage]
        if found is None:
            continue
        cells = (
            name,
            f"{found['top1']:.2%}",
            f"{found['top5']:.2%}",
            "" if size is None else f"{size:,} B",
            "" if agreement is None else f"{agreement:.2%}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", text["source"].format(images=summary["num_images"])])


def main() -> int:
    """Update both files; returns the exit code."""
    if not FIGURES.is_file():
        print(f"error: {FIGURES} is not there; copy the summary.json of a demo", file=sys.stderr)
        return 2
    summary = json.loads(FIGURES.read_text(encoding="utf-8"))
    try:
        for name, text in TEXTS.items():
            replace_between(ROOT / name, START, END, table(summary, text))
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
