"""Names of a sweep's candidates: schemes, sets of them, and methods."""

import pytest

from qllm_hf.errors import ConfigError, SchemeError
from qllm_hf.scheme import Scheme
from qllm_hf.sweep.schemes import SETS, parse_candidates


def test_float_model_always_comes_first():
    assert list(parse_candidates(["W4", "KV8"])) == ["FP16", "W4", "KV8"]
    assert list(parse_candidates(["W4", "fp16"])) == ["FP16", "W4"]
    assert parse_candidates(["W4"])["FP16"] is None


def test_labels_are_canonical_and_come_once():
    found = parse_candidates(["w4", " W4 ", "w4kv8", "W4g32"])
    assert list(found) == ["FP16", "W4", "W4KV8", "W4g32"]
    assert found["W4g32"].scheme.w_group_size == 32


def test_methods():
    found = parse_candidates(["W3+gptq", "W3", "W8A8+smoothquant+gptq"], calibration="curriculum", samples=4)
    assert list(found) == ["FP16", "W3+gptq", "W3", "W8A8+smoothquant+gptq"]
    assert (found["W3+gptq"].method, found["W3"].method) == ("gptq", "rtn")
    assert found["W3+gptq"].calibration == "curriculum" and found["W3"].calibration is None


@pytest.mark.parametrize("name", SETS)
def test_sets(name):
    found = parse_candidates([name])
    assert tuple(found) == SETS[name]
    assert all(str(Scheme.parse(label)) == label for label in found)


def test_study_has_all_schemes_of_the_study():
    assert len(SETS["study"]) == 16


def test_kept_layers_reach_all():
    found = parse_candidates(["W4", "KV4"], modules_to_not_convert=["layers.0"])
    assert found["W4"].modules_to_not_convert == ["layers.0"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["FP16"], "compares schemes with the float model, and none is given"),
        ([""], "'' is no scheme"),
        (["W4+"], r"'W4\+' is no scheme"),
        (["+gptq"], "no scheme"),
        (["FP16+gptq"], "a method needs bits below 16"),
        (["stdy"], "Did you mean 'study'"),
    ],
)
def test_refusals(texts, said):
    with pytest.raises(ConfigError, match=said):
        parse_candidates(texts)


def test_scheme_that_is_none():
    with pytest.raises(SchemeError):
        parse_candidates(["W4", "W99"])
    with pytest.raises(ConfigError, match="gptqq"):
        parse_candidates(["W4+gptqq"])
