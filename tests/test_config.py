"""QllmConfig: what it takes, what it stores, what it hints at, and what it changes in a stored checkpoint."""

import copy
import json
import operator
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.config import (
    ALIASES,
    FORMAT,
    NEWER_FLAGS,
    NEWER_KEYS,
    OTHER_KEYS,
    RUNTIME_KEYS,
    SCHEME_KEYS,
    WEIGHT_KEYS,
    QllmConfig,
)
from qllm_hf.errors import CheckpointError, ConfigError, QllmError, SchemeError
from qllm_hf.scheme import ALLOWED_BITS, FLOAT_BITS, Scheme

bits = st.sampled_from((*ALLOWED_BITS, FLOAT_BITS))
options = st.fixed_dictionaries(
    {"w": st.sampled_from(ALLOWED_BITS)},
    optional={
        "a": bits,
        "kv": bits,
        "w_group_size": st.sampled_from((-1, 0, 32, 128)),
        "kv_group_size": st.sampled_from((-1, 32, 128)),
        "w_symmetric": st.booleans(),
        "a_symmetric": st.booleans(),
        "kv_symmetric": st.booleans(),
        "modules_to_not_convert": st.lists(st.sampled_from(("*.down_proj", "layers.1")), max_size=2),
        "overrides": st.dictionaries(st.sampled_from(("*.up", "layers.0")), st.sampled_from(("W8", "FP16", "W3A8"))),
        "quantize_routers": st.booleans(),
        "quantize_head": st.just(True),  # False is not stored
    },
)
options = st.builds(
    operator.or_,
    options,
    # one of them at most
    st.sampled_from(({}, {"kv_rotate_keys": True}, {"paper_exact": True}, {"paper_exact": False})),
)


# Round trips


@given(options)
def test_json_round_trip(given_options):
    config = QllmConfig(**given_options)
    stored = json.loads(config.to_json_string())
    again = QllmConfig.from_dict(stored)
    assert again.to_dict() == config.to_dict() == stored
    assert QllmConfig(**stored).to_dict() == stored
    for key, value in given_options.items():
        assert stored[key] == (value or None if key == "overrides" else value)


@given(options)
def test_scheme_round_trip(given_options):
    scheme = QllmConfig(**given_options).scheme
    assert scheme == Scheme(**{key: value for key, value in given_options.items() if key in SCHEME_KEYS})
    assert QllmConfig.from_scheme(scheme).scheme == scheme


def test_dict_of_a_config_is_what_config_json_holds():
    config = QllmConfig(w=4, kv=8, modules_to_not_convert=["*.down_proj"])
    assert dict(config) == config.to_dict()
    assert dict(config) == {
        "quant_method": "qllm",
        "format": FORMAT,
        "w": 4,
        "a": 16,
        "kv": 8,
        "w_group_size": 128,
        "kv_group_size": 128,
        "w_symmetric": False,
        "a_symmetric": False,
        "kv_symmetric": False,
        "paper_exact": False,
        "modules_to_not_convert": ["*.down_proj"],
        "overrides": None,
        "quantize_routers": False,
        "method": "rtn",
        "method_options": None,
        "calibration": None,
        "input_scales": None,
    }
    assert {"quant_method", *SCHEME_KEYS, *OTHER_KEYS} == {*dict(config), *NEWER_KEYS}
    assert dict(QllmConfig(w=4, input_orders=["*.up_proj"]))["input_orders"] == ["*.up_proj"]
    assert "input_orders" not in dict(QllmConfig(w=4, input_orders=[]))
    for name in NEWER_FLAGS:
        assert dict(QllmConfig(w=4, **{name: True}))[name] is True
        assert name not in dict(QllmConfig(w=4, **{name: False})), "older configs compare equal"


def test_copies_are_independent():
    config = QllmConfig(w=4, modules_to_not_convert=["a"], overrides={"b": "W8"})
    for twin in (copy.deepcopy(config), QllmConfig(**dict(config))):
        twin.modules_to_not_convert.append("c")
        twin.overrides["d"] = "W8"
    config.to_dict()["overrides"]["e"] = "W8"
    assert (config.modules_to_not_convert, config.overrides) == (["a"], {"b": "W8"})


def test_from_dict_with_unused_keys():
    config, unused = QllmConfig.from_dict({"w": 4, "quant_method": "qllm"}, return_unused_kwargs=True, kv=8)
    assert (config.w, config.kv, unused) == (4, 8, {})


def test_nothing_given_is_floating_point():
    assert QllmConfig().scheme == Scheme()
    assert QllmConfig(4, 8, 2).scheme == Scheme(w=4, a=8, kv=2), "in the order of the name W4A8KV2"


# From a string


@pytest.mark.parametrize("text", ["FP16", "W4", "W4A8", "KV4", "W4KV8", "W8A8KV4", "W4g32KV4g64"])
def test_from_scheme(text):
    assert str(QllmConfig.from_scheme(text).scheme) == text


def test_options_win_over_the_string():
    config = QllmConfig.from_scheme("W4g32KV8", w_group_size=128, kv=4, paper_exact=True)
    assert config.scheme == Scheme(w=4, kv=4, paper_exact=True)


def test_from_a_scheme_that_cannot_be():
    with pytest.raises(SchemeError, match="scheme 'W9'"):
        QllmConfig.from_scheme("W9")


def test_from_what_is_no_scheme():
    with pytest.raises(SchemeError, match="scheme=4 is a int, not a string"):
        QllmConfig.from_scheme(4)


# Unknown keys and values that cannot be


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("kv_bits", "kv"),
        ("bits", "w"),
        ("group_sise", "w_group_size"),
        ("w_group_sise", "w_group_size"),
        ("group_size", "w_group_size"),
        ("load_in_4bit", "w"),
        ("activation_bits", "a"),
        ("sym", "w_symmetric"),
        ("ignore", "modules_to_not_convert"),
        ("module_to_not_convert", "modules_to_not_convert"),
        ("override", "overrides"),
        ("paper_exakt", "paper_exact"),
    ],
)
def test_unknown_key_hints_at_ours(key, hint):
    message = f"unknown key '{key}' in QllmConfig. Did you mean '{hint}'? Allowed: w, a, kv, "
    with pytest.raises(ConfigError, match=re.escape(message)):
        QllmConfig(**{"w": 4, key: 4})
    with pytest.raises(ConfigError, match=re.escape(message)):
        QllmConfig.from_dict({"w": 4, key: 4})


def test_unknown_key_without_a_hint():
    with pytest.raises(ConfigError, match=r"unknown key 'zzz' in QllmConfig\. Allowed: "):
        QllmConfig(zzz=1)


def test_hints_lead_to_keys_that_exist():
    assert set(ALIASES.values()) <= {*SCHEME_KEYS, *OTHER_KEYS}
    assert not ALIASES.keys() & {*SCHEME_KEYS, *OTHER_KEYS}


@pytest.mark.parametrize(
    ("given_options", "error", "message"),
    [
        ({"w": 9}, SchemeError, "w=9: allowed are 2, 3, 4, 5, 6, 7, 8 bits, or 16"),
        ({"a": 8}, SchemeError, "a=8 with w=16: activations are quantized only together with weights."),
        ({"w": 4, "kv_group_size": 0}, SchemeError, "kv_group_size=0: keys and values arrive token by token"),
        ({"w": None}, SchemeError, "w=None: allowed are"),
        ({"w": 4, "w_symmetric": "no"}, SchemeError, "w_symmetric='no': give True or False."),
        ({"w": 4, "method": "rtm"}, ConfigError, "method='rtm': allowed are rtn, awq,"),
        ({"w": 4, "method": "gtpq"}, ConfigError, "Did you mean 'gptq'?"),
        (
            {"w": 4, "method": "awq", "method_options": {"alpha": 1}},
            ConfigError,
            "'alpha' is no option of method 'awq'",
        ),
        ({"w": 4, "method": "gptq", "method_options": {"dampin": 1}}, ConfigError, "Did you mean 'damping'?"),
        (
            {"w": 4, "method": "gptq", "method_options": {"damping": -1}},
            ConfigError,
            "damping=-1: give a number from 0",
        ),
        ({"w": 4, "method": "smoothquant", "method_options": {"alpha": 2}}, ConfigError, "alpha=2: give a number from"),
        ({"w": 4, "samples": 0}, ConfigError, "samples=0: give a positive number."),
        ({"bits_per_weight": 1.5}, ConfigError, "bits_per_weight=1.5: give a number from 2 to 16."),
        ({"w": 4, "quantize_routers": 1}, ConfigError, "quantize_routers=1: give True or False."),
        ({"w": 4, "quantize_head": "W8"}, ConfigError, "quantize_head='W8': give True or False."),
        ({"w": 4, "modules_to_not_convert": "lm_head"}, ConfigError, "modules_to_not_convert='lm_head': give a list"),
        ({"w": 4, "modules_to_not_convert": [1]}, ConfigError, "modules_to_not_convert=[1]: give a list"),
        ({"w": 4, "overrides": ["W8"]}, ConfigError, "overrides=['W8']: give a mapping"),
        ({"w": 4, "overrides": {"x": "W9"}}, SchemeError, "scheme 'W9': w=9"),
        ({"w": 4, "overrides": {"x": "W8KV4"}}, ConfigError, "overrides['x']='W8KV4': KV bits belong to"),
        ({"w": 4, "quant_method": "gptq"}, ConfigError, "quant_method='gptq': QllmConfig reads 'qllm' only."),
        ({"w": 4, "format": FORMAT + 1}, CheckpointError, f"this checkpoint has format {FORMAT + 1}, this version"),
        ({"w": 4, "format": "1"}, CheckpointError, "format='1' is no format number. Is this config.json damaged?"),
        ({"w": 4, "format": 0}, CheckpointError, "format=0 is no format number."),
        ({"w": 4, "format": True}, CheckpointError, "format=True is no format number."),
    ],
)
def test_values_that_cannot_be(given_options, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        QllmConfig(**given_options)
    assert isinstance(caught.value, QllmError)


def test_pattern_list_that_is_no_list():
    with pytest.raises(ConfigError, match="modules_to_not_convert=5: give a list"):
        QllmConfig(w=4, modules_to_not_convert=5)


def test_newer_format_says_what_to_do():
    with pytest.raises(CheckpointError, match=r"reads up to \d+\. Run: pip install --upgrade qllm-hf"):
        QllmConfig.from_dict({"quant_method": "qllm", "w": 4, "format": FORMAT + 1})


# Overrides


def test_overrides_are_stored_in_their_canonical_form():
    assert QllmConfig(w=4, overrides={"a": "w8a16", "b": "bf16"}).overrides == {"a": "W8", "b": "FP16"}
    assert QllmConfig(w=4, overrides={}).overrides is None
    assert QllmConfig(w=4, modules_to_not_convert=("a", "b")).modules_to_not_convert == ["a", "b"]


def test_an_override_takes_what_it_does_not_say_from_the_config():
    config = QllmConfig(w=4, a=8, kv=4, w_group_size=32, w_symmetric=True, paper_exact=True)
    assert config.scheme_for("W8") == Scheme(8, 16, 4, 32, w_symmetric=True, paper_exact=True)
    assert config.scheme_for("W8A8").a == 8
    assert config.scheme_for("W8g64").w_group_size == 64
    assert config.scheme_for("FP16").weight is None


def test_an_override_may_name_the_default_group_size():
    config = QllmConfig(w=4, w_group_size=32, overrides={"*.down_proj": "W8g128"})
    assert config.scheme_for(config.overrides["*.down_proj"]).w_group_size == 128


# Together with a packed checkpoint


def loaded(stored: QllmConfig, user: QllmConfig) -> QllmConfig:
    """What transformers does with the checkpoint's config and the user's."""
    config = QllmConfig.from_dict(stored.to_dict())
    attributes: dict[str, Any] = user.get_loading_attributes()
    for name, value in attributes.items():
        setattr(config, name, value)
    config.check_requested()
    return config


def test_every_key_of_the_scheme_is_of_the_weights_or_free():
    assert sorted(RUNTIME_KEYS + WEIGHT_KEYS) == sorted(SCHEME_KEYS)


@pytest.mark.parametrize(
    ("given_options", "changed", "requested"),
    [
        ({}, {}, {}),
        ({"kv": 4}, {"kv": 4}, {}),
        ({"kv": 16}, {"kv": 16}, {}),
        ({"w": 4, "a": 8}, {"a": 8}, {"w": 4}),
        ({"w": 4, "w_group_size": 128, "a": 16}, {"a": 16}, {"w": 4, "w_group_size": 128}),
    ],
)
def test_loading_changes_only_what_was_given(given_options, changed, requested):
    attributes = QllmConfig(**given_options).get_loading_attributes()
    assert attributes.pop("requested_weights", {}) == requested
    assert attributes == changed


def test_runtime_options_replace_those_of_the_checkpoint():
    stored = QllmConfig(w=4, kv=8, w_group_size=32, kv_symmetric=True)
    assert loaded(stored, QllmConfig(kv=4)).scheme == Scheme(w=4, kv=4, w_group_size=32, kv_symmetric=True)
    assert loaded(stored, QllmConfig(w=4, a=8, kv=16)).scheme == Scheme(4, 8, w_group_size=32, kv_symmetric=True)
    assert loaded(stored, QllmConfig()).to_dict() == stored.to_dict()


def test_other_weights_than_those_packed_are_refused():
    stored = QllmConfig(w=4, kv=8)
    message = "asked for w=3, w_group_size=64, but this checkpoint holds packed weights with w=4, w_group_size=128."
    with pytest.raises(ConfigError, match=re.escape(message)):
        loaded(stored, QllmConfig(w=3, w_group_size=64, kv=4))


def test_impossible_together_with_the_checkpoint():
    stored = QllmConfig(kv=8)
    stored.a = 8
    with pytest.raises(ConfigError, match="together with the checkpoint's own config: a=8 with w=16"):
        stored.check_requested()


def test_what_was_requested_is_not_stored():
    config = loaded(QllmConfig(w=4), QllmConfig(w=4, kv=4))
    assert dict(config).keys() == dict(QllmConfig()).keys()


# Shown


def test_repr_names_the_scheme_and_what_differs_from_the_defaults():
    assert repr(QllmConfig(w=4, kv=8)) == "QllmConfig(W4KV8)"
    config = QllmConfig(w=4, modules_to_not_convert=["a"], overrides={"b": "W8"})
    assert repr(config) == "QllmConfig(W4, modules_to_not_convert=['a'], overrides={'b': 'W8'})"


@pytest.mark.parametrize(
    "option", ["quantize_routers", "quantize_head", "w_symmetric", "kv_symmetric", "kv_rotate_keys", "paper_exact"]
)
def test_repr_names_every_flag(option):
    assert option in repr(QllmConfig(w=4, kv=4, **{option: True}))
