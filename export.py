"""Turn a checkpoint into a verified int8 model: ``python export.py --help``."""

from __future__ import annotations

from engine.crash_guard import guard


def main() -> int:
    """Parse the flags and run the job; returns the exit code."""
    from engine.check import run_check
    from engine.config import ExportConfig, load_config
    from engine.export import run_export

    cfg = load_config(ExportConfig)
    return run_export(cfg) if cfg.check is None else run_check(cfg)


if __name__ == "__main__":
    guard()

    from engine.runtime import prepare_process  # loads NumPy, whose threads no fork should meet

    prepare_process()

    from engine.cli import run  # loads Paddle, so it comes after

    run(main)
