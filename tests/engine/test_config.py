from __future__ import annotations

import dataclasses

import pytest

from engine.config import (
    CommonConfig,
    EvalConfig,
    ExportConfig,
    TrainConfig,
    load_config,
    quant_config,
)
from engine.errors import EngineError
from models import ModelError
from quant import QAT

# The flags that exist already, with the defaults that users rely on.
TRAIN_DEFAULTS = {
    "batch_size": 128,
    "use_gpu": True,
    "model": "mobilenet_v3",
    "lr": 1e-4,
    "lr_strategy": "piecewise_decay",
    "step_epochs": [10, 20, 30],
    "l2_decay": 3e-5,
    "ls_epsilon": 0.0,
    "use_pact": False,
    "momentum_rate": 0.9,
    "num_epochs": 1,
    "data": "imagenet",
    "log_period": 10,
    "model_save_dir": "./output_models",
    "ce_test": False,
    "num_workers": 4,
    "fp32_epochs": 0,
    "pretrained_model": None,
    "allow_partial": False,
    "data_dir": None,
    "image_size": None,
    "num_classes": None,
    "fp32_lr": None,
    "resume": None,
    "max_steps": None,
    "freeze_epoch": None,
}


def train(*words: str) -> TrainConfig:
    return load_config(TrainConfig, list(words))


def refusal(*words: str, cls: type[CommonConfig] = TrainConfig) -> str:
    with pytest.raises(EngineError) as caught:
        load_config(cls, list(words))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("name", TRAIN_DEFAULTS)
def test_default_of_train_flag(name):
    assert getattr(train(), name) == TRAIN_DEFAULTS[name]


def test_command_lines_of_the_readme():
    assert train("--model=mobilenet_v1").model == "mobilenet_v1"
    cfg = train(
        "--lr=0.001", "--use_pact=True", "--num_epochs=30", "--l2_decay=2e-5", "--ls_epsilon=0.1"
    )
    assert (cfg.lr, cfg.use_pact, cfg.num_epochs) == (0.001, True, 30)
    assert (cfg.l2_decay, cfg.ls_epsilon, cfg.model) == (2e-5, 0.1, "mobilenet_v3")


@pytest.mark.parametrize("word", ["True", "true", "1", "yes", "YES"])
def test_boolean_words_for_true(word):
    assert train("--use_pact", word).use_pact is True
    assert train(f"--use_pact={word}").use_pact is True


@pytest.mark.parametrize("word", ["False", "false", "0", "no", "No"])
def test_boolean_words_for_false(word):
    assert train("--use_gpu", word).use_gpu is False
    assert train(f"--use_gpu={word}").use_gpu is False


def test_bare_boolean_means_true():
    cfg = train("--use_pact", "--ce_test", "--num_epochs", "2")
    assert (cfg.use_pact, cfg.ce_test, cfg.num_epochs) == (True, True, 2)


@pytest.mark.parametrize(
    "words",
    [
        ["--step_epochs", "5", "7", "9"],
        ["--step_epochs=5,7,9"],
        ["--step_epochs", "5,7", "9"],
        ["--step_epochs", "5,", "7,", "9"],
    ],
)
def test_lists_with_spaces_or_commas(words):
    assert train(*words).step_epochs == [5, 7, 9]


def test_lists_of_numbers_and_names():
    cfg = train("--mean", "0.5", "--std=0.25", "--skip_quant", "fc", "conv1.*")
    assert (cfg.mean, cfg.std, cfg.skip_quant) == ([0.5], [0.25], ["fc", "conv1.*"])


def test_none_empties_a_list():
    assert train("--step_epochs", "none").step_epochs == []


def test_defaults_are_not_shared_between_instances():
    train().step_epochs.append(99)
    assert train().step_epochs == [10, 20, 30]


def test_bare_resume_means_auto():
    assert train("--resume").resume == "auto"
    assert train("--resume", "runs/latest.pdparams").resume == "runs/latest.pdparams"


def test_the_last_of_two_flags_counts():
    assert train("--lr=1", "--lr=2").lr == 2


@pytest.mark.parametrize(
    ("words", "scratch"),
    [
        ([], False),
        (["--fp32_epochs=2"], True),
        (["--fp32_epochs=2", "--pretrained_model=w.pdparams"], False),
        (["--pretrained_model=none"], True),
        (["--pretrained_model", "None"], True),
        (["--pretrained_model=w.pdparams"], False),
    ],
)
def test_when_pretrained_weights_are_looked_for(words, scratch):
    assert train(*words).trains_from_scratch is scratch


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--lr=fast"], ["--lr", "'fast'", "a number above 0"]),
        (["--lr=0"], ["--lr", "above 0"]),
        (["--lr=nan"], ["--lr", "a number"]),
        (["--lr=inf"], ["--lr", "a number"]),
        (["--lr=1e999"], ["--lr", "a number"]),
        (["--batch_size=0"], ["--batch_size", "0", "at least 1"]),
        (["--batch_size=1.5"], ["--batch_size", "'1.5'", "an integer"]),
        (["--batch_size=-4"], ["--batch_size", "-4"]),
        (["--seed=" + "9" * 400], ["--seed", "at most 2147483647"]),
        (["--ls_epsilon=1"], ["--ls_epsilon", "at least 0 and below 1"]),
        (["--momentum_rate=1.0"], ["--momentum_rate", "below 1"]),
        (["--moving_rate=0"], ["--moving_rate", "above 0 and below 1"]),
        (["--weight_bits=9"], ["--weight_bits", "9", "at least 2 and at most 8"]),
        (["--use_pact=maybe"], ["--use_pact", "'maybe'", "True or False"]),
        (["--data=mnist"], ["--data", "'mnist'", "imagenet, cifar10, fashion_mnist"]),
        (["--lr_strategy=linear"], ["--lr_strategy", "piecewise_decay, cosine_decay"]),
        (["--step_epochs", "10", "x"], ["--step_epochs", "'x'", "an integer"]),
        (["--step_epochs=0,5"], ["--step_epochs", "at least 1"]),
        (["--step_epochs=20,10"], ["--step_epochs", "[20, 10]", "rising"]),
        (["--channels=2"], ["--channels", "2", "1, 3"]),
        (["--interpolation=cubic"], ["--interpolation", "'cubic'", "bicubic"]),
        (["--mean=0.5,0.5"], ["--mean", "2 values"]),
        (["--mean=0.5", "--std=0.2,0.2,0.2"], ["--mean: 1", "--std: 3"]),
        (["--mean=0.5", "--channels=3"], ["--mean: 1", "--channels: 3"]),
        (["--std=0"], ["--std", "above 0"]),
        (["--image_size=224", "--resize_size=200"], ["--resize_size is 200", "224"]),
        (["--freeze_epoch=1"], ["--freeze_epoch is 1", "--num_epochs is 1", "0 to 0"]),
        (["--freeze_epoch=-1", "--num_epochs=3"], ["--freeze_epoch", "-1", "at least 0"]),
        (["--num_epochs"], ["--num_epochs", "expected one argument"]),
        (["--step_epochs"], ["--step_epochs", "expected at least one argument"]),
    ],
)
def test_wrong_value_is_refused_by_name_value_and_what_is_allowed(words, parts):
    message = refusal(*words)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--lerning_rate=1", "--moving_rate"),
        ("--batchsize=3", "--batch_size"),
        ("--num_epoch", "--num_epochs"),
        ("--model_dir=x", "--model_save_dir"),
        ("--use-gpu", "--use_gpu"),
    ],
)
def test_unknown_flag_names_the_nearest(word, near):
    message = refusal(word)
    assert repr(word.split("=")[0]) in message
    assert f"did you mean {near}?" in message


def test_flags_are_not_abbreviated():
    assert "unknown argument '--batch'" in refusal("--batch=3")


def test_stray_word_is_refused():
    assert "unknown argument 'mobilenet_v1'" in refusal("mobilenet_v1")


def test_unknown_model_is_refused_at_once():
    with pytest.raises(ModelError, match="did you mean mobilenet_v1"):
        train("--model=mobilnet_v1")


def test_wrong_values_are_refused_in_python_too():
    with pytest.raises(EngineError, match="--lr is 'x'"):
        TrainConfig(lr="x")
    with pytest.raises(EngineError, match="--batch_size is True"):
        TrainConfig(batch_size=True)
    with pytest.raises(EngineError, match="--step_epochs is 10"):
        TrainConfig(step_epochs=10)
    with pytest.raises(EngineError, match="--model is None"):
        TrainConfig(model=None)


def test_integer_is_a_number_in_python_too():
    assert TrainConfig(lr=1).lr == 1


class TestYaml:
    def test_keys_are_flags(self, yaml_file):
        path = yaml_file("model: lenet\ndata: fashion_mnist\nstep_epochs: [3, 4]\nlr: 0.5\n")
        cfg = train("--config", path)
        assert (cfg.model, cfg.data, cfg.step_epochs, cfg.lr) == (
            "lenet",
            "fashion_mnist",
            [3, 4],
            0.5,
        )

    def test_command_line_wins(self, yaml_file):
        path = yaml_file("lr: 0.5\nnum_epochs: 7\n")
        for words in (["--config", path, "--lr=0.25"], ["--lr=0.25", "--config", path]):
            cfg = train(*words)
            assert (cfg.lr, cfg.num_epochs) == (0.25, 7)

    @pytest.mark.parametrize(
        ("text", "name", "value"),
        [
            ("lr: 1e-4", "lr", 1e-4),
            ("lr: '0.5'", "lr", 0.5),
            ("lr: 1", "lr", 1.0),
            ("seed: 010", "seed", 10),
            ("use_pact: yes", "use_pact", True),
            ("use_pact: off", "use_pact", False),
            ("use_pact: 1", "use_pact", True),
            ("step_epochs: 5", "step_epochs", [5]),
            ("step_epochs: 5, 6", "step_epochs", [5, 6]),
            ("step_epochs: []", "step_epochs", []),
            ("skip_quant:\n  - fc\n  - conv1", "skip_quant", ["fc", "conv1"]),
            ("mean: [0.5, 0.5, 0.5]", "mean", [0.5, 0.5, 0.5]),
            ("pretrained_model: none", "pretrained_model", "none"),
            ("pretrained_model: null", "pretrained_model", None),
            ("pretrained_model:", "pretrained_model", None),
            ("num_classes: null", "num_classes", None),
            ("model: &m lenet", "model", "lenet"),
            ("", "lr", 1e-4),
            ("# only a comment", "lr", 1e-4),
        ],
    )
    def test_values_mean_what_they_mean_on_the_command_line(self, yaml_file, text, name, value):
        result = getattr(train("--config", yaml_file(text)), name)
        assert result == value
        assert type(result) is type(value)

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("lr: 0.1\nlearning_rat: 1", [":2", "'learning_rat'"]),
            ("batchsize: 3", [":1", "'batchsize'", "did you mean batch_size?"]),
            ("config: other.yaml", ["'config'"]),
            ("lr: 0.1\nlr: 0.2", [":2", "'lr'", "twice"]),
            ("lr: fast", [":1", "lr", "'fast'", "a number"]),
            ("num_epochs: 1:30", ["num_epochs", "'1:30'", "an integer"]),
            ("num_epochs: 2.0", ["num_epochs", "'2.0'", "an integer"]),
            ("num_epochs: true", ["num_epochs", "'true'", "an integer"]),
            ("num_epochs: null", ["num_epochs", "None", "an integer"]),
            ("data: no", ["data", "'no'", "imagenet"]),
            ("lr: [1, 2]", ["lr", "a number"]),
            ("lr: {a: 1}", ["lr", "neither a value nor a list"]),
            ("step_epochs: [[1], 2]", ["step_epochs", "neither a value nor a list"]),
            ("? [a, b]\n: 1", ["unknown key"]),
            ("<<: {lr: 1}", ["unknown key '<<'"]),
            ("- lr", ["not a mapping"]),
            ("just text", ["not a mapping"]),
            ("lr: 1\n  model: x", [":2", "not valid YAML"]),
            ("lr: [1,", ["not valid YAML"]),
            ("lr: 1\n---\nlr: 2", ["not valid YAML"]),
            ("lr: *unknown", [":1", "not valid YAML"]),
            ("lr: \x07", ["not valid YAML"]),
            ("lr: " + "[" * 20000, ["not valid YAML"]),
            ("lr: !!python/object/apply:os.getcwd []", ["lr", "a number"]),
            ("model_save_dir: !!python/object/apply:os.getcwd []", ["model_save_dir", "a string"]),
        ],
    )
    def test_wrong_file_is_refused_by_name_and_key(self, yaml_file, text, parts):
        path = yaml_file(text)
        message = refusal("--config", path)
        assert path in message
        assert all(part in message for part in parts), message
        assert len(message) < 500 + len(path)

    def test_cross_checks_hold_for_a_file_too(self, yaml_file):
        path = yaml_file("freeze_epoch: 4")
        message = refusal("--config", path)
        assert "--freeze_epoch is 4" in message
        assert message.endswith(f"(--freeze_epoch: as {path} says)")
        assert path not in refusal("--config", path, "--freeze_epoch=5")

    def test_missing_file(self, tmp_path):
        path = str(tmp_path / "none.yaml")
        assert path in refusal("--config", path)

    def test_folder_and_binary_file(self, tmp_path):
        assert str(tmp_path) in refusal("--config", str(tmp_path))
        binary = tmp_path / "x.yaml"
        binary.write_bytes(b"\xff\xfe\x80")
        assert "UTF-8" in refusal("--config", str(binary))

    def test_endless_file_is_not_read(self, yaml_file):
        assert "larger than" in refusal("--config", yaml_file("# " + "x" * 200_000))

    def test_eval_and_export_take_files_too(self, yaml_file):
        path = yaml_file("batch_size: 5\noutput: there\n")
        assert load_config(EvalConfig, ["model", "--config", path]).batch_size == 5
        cfg = load_config(ExportConfig, ["model.pdparams", "--config", path])
        assert (cfg.checkpoint, cfg.output) == ("model.pdparams", "there")

    def test_positional_is_no_key(self, yaml_file):
        assert "'path'" in refusal("x", "--config", yaml_file("path: y"), cls=EvalConfig)


@pytest.mark.parametrize("cls", [TrainConfig, EvalConfig, ExportConfig])
def test_help_shows_every_flag_and_default(cls, capsys):
    with pytest.raises(SystemExit) as caught:
        load_config(cls, ["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(cls):
        if field.metadata["positional"]:
            assert field.name.upper() in text
            continue
        assert f"--{field.name} " in text
        if isinstance(field.default, (int, float)) or isinstance(field.default, str):
            assert f"(default: {field.default})" in text
    assert "examples:" in text
    assert "output:" in text and "data:" in text


def test_help_of_onnx_format_says_that_it_changes_nothing(capsys):
    with pytest.raises(SystemExit):
        load_config(TrainConfig, ["-h"])
    assert "stores integers either way" in " ".join(capsys.readouterr().out.split())


def test_eval_flags():
    cfg = load_config(EvalConfig, ["best.pdparams", "--engine", "onednn", "--output=r.json"])
    assert (cfg.path, cfg.engine, cfg.output) == ("best.pdparams", "onednn", "r.json")
    assert load_config(EvalConfig, ["--max_images=9", "model"]).max_images == 9
    assert load_config(EvalConfig, ["x"]).engine == "auto"


@pytest.mark.parametrize(
    ("cls", "words", "parts"),
    [
        (EvalConfig, [], ["required", "PATH"]),
        (EvalConfig, [""], ["path is empty"]),
        (EvalConfig, ["a", "b"], ["unknown argument 'b'"]),
        (
            EvalConfig,
            ["a", "--engine=tensorrt"],
            ["--engine", "auto, native, paddle, onednn, onnxruntime"],
        ),
        (EvalConfig, ["--modle", "lenet", "x"], ["'--modle'", "did you mean --model?"]),
        (ExportConfig, ["a"], ["--output is missing"]),
        (ExportConfig, ["--output=x"], ["required", "CHECKPOINT"]),
        (ExportConfig, ["a", "--output=x", "--calibration_batches=0"], ["--calibration_batches"]),
    ],
)
def test_wrong_eval_and_export_lines_are_refused(cls, words, parts):
    message = refusal(*words, cls=cls)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("cls", [EvalConfig, ExportConfig])
def test_eval_and_export_check_the_model_name(cls):
    words = ["x", "--model=lenett"] + (["--output=y"] if cls is ExportConfig else [])
    with pytest.raises(ModelError, match="did you mean lenet"):
        load_config(cls, words)


def test_quant_config_of_defaults_is_that_of_the_quantizer():
    assert QAT(quant_config(train())).config == QAT().config


def test_quant_config_follows_the_flags():
    cfg = train(
        "--use_pact=True",
        "--pact_init=calibrated",
        "--pact_lr_factor=10",
        "--pact_l2_decay=0",
        "--weight_bits=4",
        "--activation_bits=5",
        "--weight_quantize_type=abs_max",
        "--activation_quantize_type=abs_max",
        "--moving_rate=0.5",
        "--window_size=7",
        "--skip_quant=fc",
    )
    assert quant_config(cfg) == {
        "activation_preprocess_type": "PACT",
        "pact_init": "calibrated",
        "pact_lr_factor": 10.0,
        "pact_l2_decay": 0.0,
        "weight_bits": 4,
        "activation_bits": 5,
        "weight_quantize_type": "abs_max",
        "activation_quantize_type": "abs_max",
        "moving_rate": 0.5,
        "window_size": 7,
        "skip_quant": ["fc"],
        "deploy_target": "generic",
    }


def test_quant_config_of_export_holds_only_what_was_given():
    assert quant_config(load_config(ExportConfig, ["x", "--output=y"])) == {}
    given = load_config(ExportConfig, ["x", "--output=y", "--use_pact=False", "--weight_bits=6"])
    assert quant_config(given) == {"activation_preprocess_type": None, "weight_bits": 6}
    words = ["x", "--output=y", "--use_pact=True", "--pact_init=calibrated"]
    assert quant_config(load_config(ExportConfig, words)) == {
        "activation_preprocess_type": "PACT",
        "pact_init": "calibrated",
    }


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--pact_init=calibrated"], ["--pact_init", "calibrated", "--use_pact=True"]),
        (["--pact_lr_factor=2"], ["--pact_lr_factor", "2.0", "--use_pact=True"]),
        (["--pact_l2_decay=0"], ["--pact_l2_decay", "0.0", "--use_pact=True"]),
        (
            ["--use_pact", "--pact_init=calibrated", "--calibration_batches=0"],
            ["--pact_init", "--calibration_batches"],
        ),
        (["--use_pact", "--pact_init=calibratd"], ["--pact_init", "reference, calibrated"]),
        (["--use_pact", "--pact_lr_factor=0"], ["--pact_lr_factor", "above 0"]),
        (["--use_pact", "--pact_l2_decay=-1"], ["--pact_l2_decay", "at least 0"]),
    ],
)
def test_pact_flags_that_would_do_nothing_or_make_no_sense_are_refused(words, parts):
    with pytest.raises(EngineError) as caught:
        train(*words)
    assert all(part in str(caught.value) for part in parts)


def test_pact_without_further_flags_is_that_of_the_reference():
    config = QAT(quant_config(train("--use_pact=True"))).config
    assert config.activation_preprocess_type == "PACT"
    assert (config.pact_init, config.pact_lr_factor, config.pact_l2_decay) == (
        "reference",
        None,
        None,
    )


def test_what_the_command_line_switches_off_takes_its_settings_of_the_file_along(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("fp32_epochs: 3\nfp32_lr: 0.1\nuse_pact: true\npact_init: calibrated\n")
    cfg = load_config(TrainConfig, [f"--config={path}", "--fp32_epochs=0", "--use_pact=False"])
    assert (cfg.fp32_epochs, cfg.fp32_lr) == (0, None)
    assert (cfg.use_pact, cfg.pact_init) == (False, "reference")
    # What stands on the command line itself is meant.
    with pytest.raises(EngineError, match="--fp32_lr is 0.2, which needs"):
        load_config(TrainConfig, [f"--config={path}", "--fp32_epochs=0", "--fp32_lr=0.2"])
    path.write_text("fp32_epochs: 0\nfp32_lr: 0.1\n")
    with pytest.raises(EngineError, match="--fp32_lr is 0.1, which needs"):
        load_config(TrainConfig, [f"--config={path}"])


@pytest.mark.parametrize(
    ("flags", "switch"),
    [
        (["--distill_weight=0.9"], "distill=True"),
        (["--distill_temperature=4"], "distill=True"),
        (["--amp_dtype=float16"], "amp=True"),
        (["--fp32_lr=0.1"], "fp32_epochs=1 or more"),
        (["--pact_init=calibrated"], "use_pact=True"),
    ],
)
def test_a_flag_that_would_do_nothing_names_the_one_that_it_needs(flags, switch):
    name, value = flags[0].lstrip("-").split("=")
    with pytest.raises(EngineError, match=rf"--{name} is {value}.*, which needs --{switch}$"):
        load_config(TrainConfig, flags)


def test_allowing_a_partial_match_needs_weights():
    with pytest.raises(EngineError, match="--allow_partial needs weights"):
        load_config(TrainConfig, ["--allow_partial", "--pretrained_model=none"])
