"""Sensitivity is what it says, and a budget spent by it is better spent than evenly."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from tiny_models import float_model, prompt
from transformers import AutoModelForCausalLM, AutoTokenizer

from qllm_hf import CalibrationError, ConfigError, ModelError, QllmConfig, measure_sensitivity, quantize_
from qllm_hf.methods.calibration import read_calibration, token_blocks
from qllm_hf.nn import PackedModule
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize

LAYER = "model.layers.2.mlp.down_proj"


@pytest.fixture(scope="module")
def text(shared):
    return shared / "data" / "calibration" / "tinystories_calib.jsonl"


@pytest.fixture(scope="module")
def ids(stories, text):
    return read_calibration(text, AutoTokenizer.from_pretrained(stories), samples=4, seqlen=256).ids


@pytest.fixture(scope="module")
def model(stories):
    return AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def table(model, ids):
    return measure_sensitivity(model, calibration=ids, w_group_size=64, bits=(2, 3, 4, 8)).to_dict()


@torch.no_grad()
def test_a_cost_is_the_divergence_of_the_model_with_that_layer_rounded(model, ids, table):
    other = copy.deepcopy(model)
    weight = other.get_submodule(LAYER).weight
    weight.copy_(fake_quantize(weight, Spec(3, 64)))
    before, after = (F.log_softmax(m(ids, use_cache=False).logits, -1) for m in (model, other))
    expected = (before.exp() * (before - after)).sum(-1).mean()
    assert table["layers"][LAYER]["bits"]["3"]["kl"] == pytest.approx(float(expected), rel=1e-3)
    assert table["layers"][LAYER]["bits"]["2"]["kl"] > 2 * float(expected)


def test_the_model_is_left_as_it_was(stories, model, ids, table):
    fresh = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["falcon", "mixtral", "gpt2", "gpt_oss", "mamba", "rwkv"])
def test_other_families_can_be_measured(name):
    model = float_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = measure_sensitivity(model, calibration=prompt(name, batch=2), w_group_size=32, bits=(2, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    costs = [{choice.bits: choice.cost for choice in choices} for choices in found.layers.values()]
    assert sum(cost[2] for cost in costs) > 10 * sum(cost[8] for cost in costs) > 0


def stored_bits(model):
    modules = [module for module in model.modules() if isinstance(module, PackedModule)]
    packed = [module._parameters[name] for module in modules for name in module.packed_names()]
    return sum(8 * parameter.numel() * parameter.element_size() for parameter in packed)


@torch.no_grad()
def loss(model, blocks):
    return float(model(blocks, labels=blocks, use_cache=False).loss)


def test_a_budget_is_kept_and_better_spent_than_evenly(stories, shared, table):
    rows = (shared / "data" / "basic_nlp" / "tinystories.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    tokenizer = AutoTokenizer.from_pretrained(stories)
    test = token_blocks([json.loads(row)["text"] for row in rows], tokenizer, samples=16, seqlen=256)
    load = lambda: AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)  # noqa: E731
    uniform = quantize_(load(), "W3g64")
    elements = sum(layer["elements"] for layer in table["layers"].values())
    size = sum(layer["bits"]["3"]["size"] for layer in table["layers"].values())
    assert stored_bits(uniform) == size
    mixed = quantize_(load(), QllmConfig.from_budget(size / elements, table, w_group_size=64))
    assert stored_bits(mixed) <= size
    assert loss(mixed, test) < loss(uniform, test) - 0.1
    # a table that says the opposite of what was measured
    wrong = copy.deepcopy(table)
    largest = max(layer["bits"]["2"]["kl"] for layer in wrong["layers"].values())
    for layer in wrong["layers"].values():
        factor = largest / layer["bits"]["2"]["kl"]
        for value in layer["bits"].values():
            value["kl"] *= factor**2
    inverted = quantize_(load(), QllmConfig.from_budget(size / elements, wrong, w_group_size=64))
    assert loss(inverted, test) > loss(mixed, test)


def test_a_table_survives_json_and_a_saved_model_is_read_again(stories, tmp_path, model, ids):
    table = measure_sensitivity(model, calibration=ids[:2], w_group_size=64, bits=(3, 4)).to_dict()
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps(table))
    config = QllmConfig.from_budget(4.0, path, w_group_size=64, kv=8)
    assert config.overrides == QllmConfig.from_budget(4.0, table, w_group_size=64).overrides
    packed = AutoModelForCausalLM.from_pretrained(stories, quantization_config=config)
    packed.save_pretrained(tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert torch.equal(packed(ids).logits, again(ids).logits)
    modules = [module for module in again.modules() if isinstance(module, PackedModule)]
    assert {spec.bits for module in modules for spec, _ in module.weight_specs.values()} == {3, 4}


def test_without_a_table_the_model_is_measured_when_it_is_loaded(stories, text, tmp_path):
    config = QllmConfig.from_budget(3.7, calibration=str(text), samples=2, seqlen=128, w_group_size=64)
    packed = AutoModelForCausalLM.from_pretrained(stories, quantization_config=config)
    stored = packed.config.quantization_config.to_dict()
    assert stored["overrides"] and stored["calibration"]["source"] == text.name
    assert "bits_per_weight" not in stored


def test_overrides_of_the_user_are_left_alone(table):
    config = QllmConfig.from_budget(4.0, table, w_group_size=64, overrides={LAYER: "W8"})
    assert config.overrides[LAYER] == "W8"
    with_inputs = QllmConfig.from_budget(4.0, table, w_group_size=64, a=8)
    assert {text[2:] for text in with_inputs.overrides.values()} == {"A8"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"format": 2}, "no sensitivity table of format 1"),
        ("nowhere.json", "no sensitivity table"),
        ({"format": 1, "group_size": 64, "layers": {"a": {"bits": {}}}}, "damaged"),
        ({"format": 1, "group_size": 64, "layers": {}}, "damaged"),
    ],
)
def test_what_is_no_table_is_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        QllmConfig.from_budget(4.0, source, w_group_size=64)


def test_a_table_of_other_groups_or_another_model_is_refused(table):
    with pytest.raises(ConfigError, match="w_group_size=64"):
        QllmConfig.from_budget(4.0, table, w_group_size=32)
    config = QllmConfig.from_budget(3.7, table, w_group_size=64)
    with pytest.raises(ModelError, match="means no linear layer"):
        quantize_(float_model("opt"), config)


def test_without_text_nothing_is_measured(model):
    with pytest.raises(CalibrationError, match="bits_per_weight looks at text"):
        measure_sensitivity(model)
    with pytest.raises(ConfigError, match="bit-widths from 2 to 8"):
        measure_sensitivity(model, calibration=torch.ones(1, 8, dtype=torch.int64), bits=(1,))
