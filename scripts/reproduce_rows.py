"""The published rows that scripts/reproduce.sh runs, and the folder and recipe of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.config import TrainConfig, load_config
from engine.errors import EngineError
from engine.files import read_json
from engine.flags import nearest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "imagenet.json"

# Flags that say where or how fast, and leave what is computed alone.
NEUTRAL = {
    "config", "data_dir", "num_workers", "eval_batch_size", "use_gpu", "model_save_dir",
    "log_period", "keep_checkpoints", "save_steps", "resume", "verify_images",
}  # fmt: skip


class Row(NamedTuple):
    """One row of the table: published Top1 and Top5 in percent, float and int8.

    `method` is by language of the README.
    """

    name: str
    model: str
    method: dict[str, str]
    fp32: tuple[float, float]
    int8: tuple[float, float]

    @property
    def config(self) -> str:
        """Its recipe, relative to the project."""
        return f"configs/{self.name}.yaml"


ROWS = (
    Row(
        "mobilenet_v1",
        "MobileNetV1",
        {"en": "plain QAT", "zh": "普通 QAT"},
        fp32=(70.99, 89.65),
        int8=(70.63, 89.65),
    ),
    Row(
        "mobilenet_v3_large_ssld_pact",
        "MobileNetV3 (SSLD)",
        {"en": "PACT QAT", "zh": "PACT QAT"},
        fp32=(78.96, 94.48),
        int8=(77.52, 93.77),
    ),
)


def find_rows(names: Sequence[str]) -> list[Row]:
    """The rows of these names, in the order of the table; all of them where there is no name.

    Raises:
        EngineError: there is no such row.
    """
    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise EngineError(f"there is no row {name!r}{hint} (there are: {', '.join(known)})")
    return [row for row in ROWS if not names or row.name in names]


def config_of(row: Row, flags: Sequence[str] = ()) -> TrainConfig:
    """The settings of a row, with further flags on top.

    Raises:
        DataError, EngineError, ModelError: a flag is not as it has to be.
    """
    return load_config(TrainConfig, ["--config", str(ROOT / row.config), *flags])


def changed_flags(recipe: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Flags by which two recipes compute something else."""
    names = [name for name in recipe if name not in NEUTRAL]
    return [name for name in names if recipe[name] != other.get(name)]


def recipe_of(cfg: TrainConfig) -> dict[str, Any]:
    """Every flag by name, as run.json has them."""
    return dataclasses.asdict(cfg)


def read_run(folder: Path) -> dict[str, Any] | None:
    """What run.json of a row's folder says; None where no run has begun.

    Raises:
        EngineError: it cannot be read.
    """
    path = folder / "run.json"
    return read_json(path) if path.is_file() else None
