"""Measure Top1, Top5, speed and size of a model: ``python eval.py --help``."""

from __future__ import annotations

from engine.crash_guard import guard


def main() -> int:
    """Parse the flags and run the job; returns the exit code."""
    from engine.config import EvalConfig, load_config
    from engine.evaluate import run_evaluation

    return run_evaluation(load_config(EvalConfig))


if __name__ == "__main__":
    guard()

    from engine.runtime import prepare_process  # loads NumPy, whose threads no fork should meet

    prepare_process()

    from engine.cli import run  # loads Paddle, so it comes after

    run(main)
