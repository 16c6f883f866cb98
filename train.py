"""Train a quantized image classifier and export it as int8: ``python train.py --help``."""

from __future__ import annotations

from engine.runtime import prepare_process


def main() -> int:
    """Parse the flags and run the job; returns the exit code."""
    from engine.config import TrainConfig, load_config
    from engine.trainer import train

    return train(load_config(TrainConfig))


if __name__ == "__main__":
    prepare_process()

    from engine.cli import run  # loads Paddle, so it comes after

    run(main)
