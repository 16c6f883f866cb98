from __future__ import annotations

import json

import pytest

from quant import QAT, ConfigError, QuantConfig

# The table of keys that users start from.
DEFAULTS = {
    "weight_preprocess_type": None,
    "activation_preprocess_type": None,
    "weight_quantize_type": "channel_wise_abs_max",
    "activation_quantize_type": "moving_average_abs_max",
    "weight_bits": 8,
    "activation_bits": 8,
    "dtype": "int8",
    "window_size": 10000,
    "moving_rate": 0.9,
    "quantizable_layer_type": ["Conv2D", "Linear"],
}


def test_the_full_dictionary_is_accepted_and_equals_the_defaults():
    given, default = QAT(config=DEFAULTS).config.to_dict(), QAT().config.to_dict()
    assert given == default
    assert {key: default[key] for key in DEFAULTS} == DEFAULTS


def test_a_missing_key_takes_its_default():
    config = QAT({"weight_bits": 4}).config.to_dict()
    assert {key: config[key] for key in DEFAULTS} == {**DEFAULTS, "weight_bits": 4}


@pytest.mark.parametrize(
    "key, value",
    [
        ("weight_preprocess_type", "pact"),
        ("weight_preprocess_type", 1),
        ("activation_preprocess_type", "DoReFa"),
        ("activation_preprocess_type", False),
        ("weight_quantize_type", "range_abs_max"),
        ("weight_quantize_type", None),
        ("activation_quantize_type", "channel_wise_abs_max"),
        ("activation_quantize_type", 8),
        ("weight_bits", 1),
        ("weight_bits", 17),
        ("weight_bits", 8.0),
        ("weight_bits", "8"),
        ("weight_bits", True),
        ("activation_bits", 0),
        ("activation_bits", None),
        ("dtype", "uint8"),
        ("dtype", None),
        ("window_size", 0),
        ("window_size", 10.5),
        ("moving_rate", 0.0),
        ("moving_rate", 1.0),
        ("moving_rate", float("nan")),
        ("moving_rate", "0.9"),
        ("moving_rate", True),
        ("quantizable_layer_type", "Conv2D"),
        ("quantizable_layer_type", []),
        ("quantizable_layer_type", ["Conv3D"]),
        ("quantizable_layer_type", [1]),
        ("skip_quant", "fc"),
        ("skip_quant", [None]),
        ("deploy_target", "gpu"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(key, value):
    with pytest.raises(ConfigError) as caught:
        QAT(config={key: value})
    message = str(caught.value)
    shown = value[0] if isinstance(value, list) and value else value
    assert key in message and repr(shown) in message and "allowed is" in message
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


def test_an_unknown_key_is_named_with_the_nearest_one():
    with pytest.raises(ValueError, match="'weight_bit'.*did you mean 'weight_bits'.*moving_rate"):
        QAT(config={"weight_bit": 8})


def test_a_misspelt_value_is_named_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'abs_max'"):
        QAT(config={"activation_quantize_type": "absmax"})
    with pytest.raises(ValueError, match="did you mean 'Conv2D'"):
        QAT(config={"quantizable_layer_type": ["Conv2d"]})


@pytest.mark.parametrize("config", ["int8", 8, ["weight_bits"]])
def test_a_config_that_is_no_dictionary_is_refused(config):
    with pytest.raises(ConfigError, match="config=.*allowed is a dictionary"):
        QAT(config=config)


def test_keys_that_are_no_strings_are_refused():
    with pytest.raises(ConfigError, match="unknown key 8"):
        QAT(config={8: "weight_bits"})


def test_the_dictionary_goes_through_json_and_back():
    config = QuantConfig(weight_bits=4, skip_quant=("fc", "stem.*"), moving_rate=0.5)
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_config_cannot_change_after_it_was_checked():
    with pytest.raises(AttributeError):
        QAT().config.weight_bits = 99


def test_the_dictionary_of_the_user_is_left_alone():
    config = dict(DEFAULTS, quantizable_layer_type=["Conv2D"])
    before = json.dumps(config)
    QAT(config=config)
    assert json.dumps(config) == before


@pytest.mark.parametrize("bits", range(2, 17))
def test_two_to_sixteen_bits_are_allowed(bits):
    config = QAT({"weight_bits": bits, "activation_bits": bits}).config
    assert (config.weight_bits, config.activation_bits) == (bits, bits)
