"""Settings by generator: whatever stands in a flag, a file or a config, it is taken or named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import DataError
from data.imagenet import read_image_list
from engine.config import EvalConfig, ExportConfig, TrainConfig, load_config
from engine.errors import EngineError
from models import ModelError
from quant import ConfigError, QuantConfig

OURS = (EngineError, ModelError)
QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

CONFIGS = (TrainConfig, EvalConfig, ExportConfig)
NAMES = sorted({field.name for config in CONFIGS for field in dataclasses.fields(config)})
# What people write, and what nobody does.
WORDS = st.one_of(
    st.sampled_from(["", "none", "null", "true", "no", "auto", "0", "-1", "1e400", "nan", "inf"]),
    st.sampled_from(
        ["lenet", "resnet50", "PACT", "onednn", "1,2,3", "0.5 0.5", "'", '"', "[", "{"]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def one_line(error: Exception) -> None:
    assert str(error).strip() and "\n" not in str(error).strip()


@QUICK
@given(st.sampled_from(CONFIGS), st.lists(st.tuples(st.sampled_from(NAMES), WORDS), max_size=4))
def test_flags(config, flags):
    words = [f"--{name}={value}" for name, value in flags]
    try:
        found = load_config(config, words)
    except OURS as error:
        one_line(error)
    else:
        assert isinstance(found, config)


@QUICK
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=4))
def test_yaml_files_of_any_values(tmp_path, values):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # which is YAML, too
    try:
        load_config(TrainConfig, ["--config", str(path)])
    except OURS as error:
        one_line(error)


@QUICK
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_yaml_files_of_any_bytes(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    try:
        load_config(TrainConfig, ["--config", str(path)])
    except OURS as error:
        one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch hacked']",
        "lr: !!python/name:os.system",
        "a: &a [x, x]\nmodel: [*a, *a]",
        "? [model]\n: lenet",
        "model: &x {y: *x}",
        "[" * 100_000,
    ],
)
def test_yaml_of_another_mind(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    with pytest.raises(OURS) as caught:
        load_config(TrainConfig, ["--config", "config.yaml"])
    one_line(caught.value)
    assert not Path("hacked").exists()


KEYS = sorted(field.name for field in dataclasses.fields(QuantConfig))


@QUICK
@given(VALUES | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), VALUES, max_size=4))
def test_quantization_configs(values):
    try:
        config = QuantConfig.from_dict(values)
    except ConfigError as error:
        one_line(error)
    else:
        assert QuantConfig.from_dict(config.to_dict()) == config


LINES = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda path, label: f"{path} {label}\n".encode(errors="surrogatepass"),
        st.text(max_size=20),
        st.integers() | st.text(max_size=4),
    ),
)


@QUICK
@given(st.lists(LINES, max_size=6).map(b"".join))
def test_list_files(tmp_path, content):
    path = tmp_path / "train_list.txt"
    path.write_bytes(content)
    try:
        names, labels, lines = read_image_list(path)
    except DataError as error:
        one_line(error)
    else:
        assert len(names) == len(labels) == len(lines) > 0 and labels.min() >= 0
        folder = (tmp_path / "data").resolve()
        for name in names:
            if "\0" not in name:
                assert (folder / name).resolve().is_relative_to(folder), name
