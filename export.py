"""Turn a checkpoint into a verified int8 model: ``python export.py --help``."""

from __future__ import annotations

from engine.runtime import prepare_process


def main() -> int:
    """Parse the flags and run the job; returns the exit code."""
    from engine.config import ExportConfig, load_config
    from engine.export import run_export

    return run_export(load_config(ExportConfig))


if __name__ == "__main__":
    prepare_process()

    from engine.cli import run  # loads Paddle, so it comes after

    run(main)
