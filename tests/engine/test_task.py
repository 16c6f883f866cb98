from pathlib import Path

import pytest

from data import DataError, InputConfig
from engine.config import EvalConfig, ExportConfig, TrainConfig
from engine.errors import EngineError
from engine.files import read_json, write_json
from engine.run_file import find_run
from engine.task import resolve_input, task_of_file, task_of_training, write_run
from models import model_info


def train_config(**flags):
    return TrainConfig(**{"model": "lenet", "data": "fashion_mnist", **flags})


def eval_config(path, **flags):
    return EvalConfig(path=str(path), **flags)


def test_the_input_is_the_models_own_unless_a_flag_says_otherwise():
    info = model_info("mobilenet_v1")
    own = resolve_input(TrainConfig(model="mobilenet_v1"), info)
    assert (own.image_size, own.short_side, own.mean) == (224, 256, info.mean)
    cfg = TrainConfig(model="mobilenet_v1", image_size=112, std=[0.5, 0.5, 0.5])
    other = resolve_input(cfg, info)
    assert (other.image_size, other.short_side, other.std) == (112, 128, (0.5,) * 3)
    assert other.mean == info.mean


def test_another_number_of_channels_gets_fitting_statistics():
    info = model_info("mobilenet_v1")
    found = resolve_input(TrainConfig(model="mobilenet_v1", channels=1), info)
    assert found.mean == pytest.approx([sum(info.mean) / 3])


def test_antialias_is_the_flags_then_that_of_the_run_then_the_models():
    info = model_info("mobilenet_v1")

    def found(flag, stored):
        return resolve_input(TrainConfig(model="mobilenet_v1", antialias=flag), info, stored)

    assert found(None, {}).antialias is info.antialias is False
    assert found(None, {"antialias": True}).antialias is True
    assert found(False, {"antialias": True}).antialias is False
    assert found(True, {"antialias": False}).antialias is True
    with pytest.raises(DataError, match="antialias is True with interpolation 'area', allowed"):
        found(None, {"antialias": True, "interpolation": "area"})


def test_run_json_brings_back_the_task(tmp_path):
    cfg = train_config(image_size=20, resize_size=24, use_pact=True, weight_bits=4)
    task, _ = task_of_training(cfg)
    write_run(tmp_path / "run.json", task, {"lr": 0.5})
    for path in ("best_model.pdparams", "best_model", "inference_model/qat_model.pdmodel"):
        found = task_of_file(eval_config(tmp_path / path), tmp_path / path, needs_network=True)
        assert found == task
    stored = read_json(tmp_path / "run.json")
    assert stored["recipe"] == {"lr": 0.5}
    assert set(stored["versions"]) == {"python", "paddle", "numpy"}


def test_a_file_of_its_own_comes_before_the_run_of_the_folder(tmp_path):
    write_json(tmp_path / "run.json", {"model": "lenet"})
    write_json(tmp_path / "m.v2.run.json", {"model": "resnet18"})
    for name in ("m.v2", "m.v2.pdmodel", "m.v2.onnx"):
        found = find_run(tmp_path / name)
        assert found == (str(tmp_path / "m.v2.run.json"), {"model": "resnet18"})
    assert find_run(tmp_path / "m").values == {"model": "lenet"}


def test_flags_win_over_run_json(tmp_path):
    task, _ = task_of_training(train_config())
    write_run(tmp_path / "run.json", task, {})
    path = tmp_path / "w.pdparams"
    cfg = ExportConfig(
        checkpoint=str(path), output="x", image_size=32, activation_bits=6, use_pact=True
    )
    found = task_of_file(cfg, path, needs_network=True)
    assert found.input == InputConfig(32, 32, 1, task.input.mean, task.input.std, "bilinear")
    assert found.quantization.activation_bits == 6
    assert found.quantization.activation_preprocess_type == "PACT"


def test_without_run_json_the_model_has_to_be_named(tmp_path):
    path = Path(tmp_path / "deep" / "er" / "w.pdparams")
    with pytest.raises(EngineError, match=r"w\.pdparams: there is no run\.json .*--model"):
        task_of_file(eval_config(path), path, needs_network=True)
    cfg = eval_config(path, model="lenet", data="fashion_mnist")
    assert task_of_file(cfg, path, needs_network=True).num_classes == 10


BROKEN = [
    ('{"input": {"image_size": "x"}}', "input.image_size is 'x', allowed: an integer"),
    ('{"input": {"image_size": true}}', "input.image_size is True, allowed: an integer"),
    ('{"input": {"resize_size": 28.5}}', "input.resize_size is 28.5, allowed: an integer"),
    ('{"input": {"channels": 2}}', "input.channels is 2, allowed: 1 or 3"),
    ('{"input": {"mean": 3}}', "input.mean is 3, allowed: a list of numbers"),
    ('{"input": {"std": ["a"]}}', "input.std is ['a'], allowed: a list of numbers"),
    ('{"input": {"std": [NaN]}}', "input.std is [nan], allowed: a list of numbers"),
    ('{"input": {"antialias": 1}}', "input.antialias is 1, allowed: true or false"),
    ('{"input": {"interpolation": []}}', "input.interpolation is [], allowed: nearest, "),
    ('{"input": 3}', "input is 3, allowed: an object"),
    ('{"model": ["lenet"]}', "model is ['lenet'], allowed: a string"),
    ('{"model": "lenett"}', "did you mean lenet"),
    ('{"num_classes": "ten"}', "num_classes is 'ten', allowed: an integer of 1 or more"),
    ('{"num_classes": 0}', "num_classes is 0, allowed: an integer of 1 or more"),
    ('{"class_names": 5}', "class_names is 5, allowed: a list of strings"),
    ('{"class_names": [1]}', "class_names is [1], allowed: a list of strings"),
    ('{"data": 5}', "data is 5, allowed: a string"),
    ('{"data_dir": 5}', "data_dir is 5, allowed: a string"),
    ('{"quantization": "int8"}', "quantization is 'int8', allowed: an object"),
    ('{"quantization": {"weight_bits": 99}}', "quantization: weight_bits=99: allowed is"),
    ('{"quantization": {"bits": 8}}', "quantization: unknown key 'bits'"),
    ("[]", "holds no JSON object"),
    ("{", "not a JSON file"),
]


@pytest.mark.parametrize("content,told", BROKEN)
def test_a_damaged_run_json_is_one_line_that_names_file_key_value_and_what_is_allowed(
    tmp_path, content, told
):
    (tmp_path / "run.json").write_text(content)
    path = tmp_path / "w.pdparams"
    with pytest.raises(EngineError) as caught:
        flags = {} if "lenett" in content else {"model": "lenet"}
        cfg = eval_config(path, data="fashion_mnist", **flags)
        task_of_file(cfg, path, needs_network=True)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/run.json") and told in message
    assert "\n" not in message


def test_statistics_that_do_not_fit_the_channels_are_told_with_the_file(tmp_path):
    write_json(tmp_path / "run.json", {"model": "lenet", "input": {"channels": 1, "mean": [2, 3]}})
    path = tmp_path / "w.pdparams"
    with pytest.raises(EngineError, match=r"run\.json and the flags: mean is \(2, 3\), allowed"):
        task_of_file(eval_config(path, data="fashion_mnist"), path, needs_network=True)
