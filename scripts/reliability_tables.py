"""Writes the tables of docs/reliability.md from benchmarks/results/crash_*.json and fuzz_*.json.

python -m scripts.reliability_tables
"""

from __future__ import annotations

from scripts.results import replace_tables, results


def main() -> None:
    """Replaces each table between its marks."""
    replace_tables("reliability.md", {"crash": crash_table(), "fuzz": fuzz_table()})


def crash_table() -> str:
    """Kills and what became of the runs."""
    lines = [
        "| Paddle | kills | in the float stage | in QAT | before anything was saved | runs | "
        "a whole run, s | files that were not whole | runs that ended otherwise |",
        "|---" * 9 + "|",
    ]
    for found in results("crash_*.json"):
        stages = [row["stage"] for row in found["rows"]]
        apart = {line.partition(":")[0] for line in found["faults"] if line.startswith("run ")}
        broken = [line for line in found["faults"] if "after a kill" in line or "is cut" in line]
        cells = [
            found["paddle"],
            found["kills"],
            *(stages.count(stage) for stage in ("fp32", "qat", None)),
            found["runs"],
            found["seconds_of_a_whole_run"],
            len(broken),
            len(apart),
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def fuzz_table() -> str:
    """Damaged files of each kind, and what became of them."""
    lines = [
        "| kind of file | files | refused | read | engine crashes | findings | MiB more | s |",
        "|---" * 8 + "|",
    ]
    keys = ("files", "refused", "read", "engine_crashes", "findings", "most_mib_more", "seconds")
    notes = []
    for found in results("fuzz_*.json"):
        for row in found["rows"]:
            lines.append(f"| {row['kind']} | " + " | ".join(str(row[key]) for key in keys) + " |")
        total = sum(row["files"] for row in found["rows"])
        notes.append(f"Paddle {found['paddle']}, seed {found['seed']}, {total:,} files in all.")
    lines += ["", *notes]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
