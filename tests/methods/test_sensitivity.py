"""Sensitivity is what it says, and a budget spent by it is better spent than evenly."""

import copy
import json
from random import Random

import pytest
import torch
import torch.nn.functional as F
from tiny_models import float_model, prompt
from transformers import AutoModelForCausalLM, AutoTokenizer

from qllm_hf import CalibrationError, ConfigError, ModelError, QllmConfig, measure_sensitivity, quantize_
from qllm_hf.methods import sensitivity
from qllm_hf.methods.calibration import read_calibration, token_blocks
from qllm_hf.methods.sensitivity import Sensitivity
from qllm_hf.nn import PackedModule
from qllm_hf.plan import make_plan, packed_bits
from qllm_hf.scheme import Spec
from qllm_hf.uniform import fake_quantize

LAYER = "model.layers.2.mlp.down_proj"
BITS = (2, 3, 4, 8)


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
    return measure_sensitivity(model, calibration=ids, w_group_size=64, bits=BITS).to_dict()


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
    fresh = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).train()
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    measure_sensitivity(fresh, calibration=ids[:1], w_group_size=64, bits=(8,))
    assert all(module.training for module in fresh.modules())
    assert fresh.config.to_dict() == model.config.to_dict()


@torch.no_grad()
def test_the_sum_of_costs_puts_allocations_in_the_order_of_their_true_divergence(model, ids, table):
    before = F.log_softmax(model(ids, use_cache=False).logits, -1)
    random, predicted, true = Random(0), [], []
    for _ in range(16):
        widths = random.choices(((2, 3), (3, 4), (3, 8), (4, 8)))[0]
        bits = {name: random.choice(widths) for name in table["layers"]}
        other = copy.deepcopy(model)
        for name, width in bits.items():
            weight = other.get_submodule(name).weight
            weight.copy_(fake_quantize(weight, Spec(width, 64)))
        after = F.log_softmax(other(ids, use_cache=False).logits, -1)
        true.append(float((before.exp() * (before - after)).sum(-1).mean()))
        predicted.append(sum(table["layers"][name]["bits"][str(width)]["kl"] for name, width in bits.items()))
    ranks = torch.tensor([predicted, true]).argsort(1).argsort(1).double()
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.9


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


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.parametrize("options", [{}, {"w_group_size": -1}, {"w_group_size": 0}, {"w_symmetric": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_are_what_packed_tensors_take(name, options, dtype):
    model = float_model(name).to(dtype)
    plan = make_plan(model, QllmConfig(w=3, **options))
    expected = [packed_bits(model, entries) for entries in plan.modules().values()]
    quantize_(model, "W3", **options)
    assert sum(expected) == stored_bits(model)


@torch.no_grad()
def loss(model, blocks):
    return float(model(blocks, labels=blocks, use_cache=False).loss)


@pytest.fixture(scope="module")
def test(stories, tinystories_text):
    return token_blocks(tinystories_text[:60], AutoTokenizer.from_pretrained(stories), samples=16, seqlen=256)


def test_a_budget_is_kept_and_better_spent_than_evenly(stories, test, table):
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


def test_budgets_between_two_bit_widths_buy_better_models_than_larger_uniform_ones(stories, ids, test):
    load = lambda: AutoModelForCausalLM.from_pretrained(stories, dtype=torch.bfloat16)  # noqa: E731
    elements = sum(entry.elements for entry in make_plan(load(), QllmConfig(w=4)).quantized())
    table = measure_sensitivity(load(), calibration=ids[:2], w_group_size=32).to_dict()
    for budget, scheme in ((3.25, "W2g16"), (4.25, "W3g16")):
        mixed = quantize_(load(), QllmConfig.from_budget(budget, table, w_group_size=32))
        uniform = quantize_(load(), scheme)
        assert 0.99 * budget < stored_bits(mixed) / elements <= budget < stored_bits(uniform) / elements
        assert loss(mixed, test) < loss(uniform, test) - 0.05


def test_a_table_survives_json_and_a_saved_model_is_read_again(stories, tmp_path, model, ids):
    table = measure_sensitivity(model, calibration=ids[:2], w_group_size=64, bits=(3, 4)).to_dict()
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps(table))
    config = QllmConfig.from_budget(4.0, path, w_group_size=64, kv=8)
    assert config.overrides == QllmConfig.from_budget(4.0, table, w_group_size=64).overrides
    assert Sensitivity.from_dict(path).to_dict() == Sensitivity.from_dict(table).to_dict() == table
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


def test_layers_that_the_user_decides_on_are_outside_of_the_budget(model, table):
    layers = table["layers"]
    spent = [
        QllmConfig.from_budget(4.0, table, w_group_size=64, overrides={"*.down_proj": "W8"}),
        QllmConfig.from_budget(4.0, table, w_group_size=64, modules_to_not_convert=["*.down_proj"]),
    ]
    for config in spent:
        assert not any(name.endswith("down_proj") for name in config.overrides if "*" not in name)
        names = [name for name in layers if not name.endswith("down_proj")]
        bits = {name: config.overrides.get(name, f"W{config.w}")[1:] for name in names}
        taken = sum(layers[name]["bits"][bits[name]]["size"] for name in names)
        elements = sum(layers[name]["elements"] for name in names)
        assert 0.97 * 4 * elements < taken <= 4 * elements
    assert spent[0].overrides["*.down_proj"] == "W8"
    plan = make_plan(model, spent[0])
    assert {e.weight.bits for e in plan.quantized() if e.module.endswith("down_proj")} == {8}
    with_inputs = QllmConfig.from_budget(4.0, table, w_group_size=64, a=8)
    assert {text[2:] for text in with_inputs.overrides.values()} == {"A8"}
    with pytest.raises(ConfigError, match="leave no layer"):
        QllmConfig.from_budget(4.0, table, w_group_size=64, modules_to_not_convert=["*"])


def test_a_budget_is_enough_to_quantize(stories, ids):
    config = QllmConfig(bits_per_weight=4.0, calibration=ids[:1], w_group_size=64)
    model = quantize_(AutoModelForCausalLM.from_pretrained(stories), config)
    assert any(isinstance(module, PackedModule) for module in model.modules())
    with pytest.raises(ConfigError, match="w=16: it is the budget of quantized weights"):
        QllmConfig.from_budget(4.0, calibration=ids, w=16)


def damaged(**changes):
    layer = {"elements": 4, "bits": {"2": {"size": 8, "kl": 0.1}}}
    return {"format": 1, "group_size": 64, "symmetric": False, "layers": {"a": {**layer, **changes}}}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"format": 2}, "no sensitivity table of format 1"),
        ("nowhere.json", "no sensitivity table"),
        ([], "no sensitivity table"),
        ({**damaged(), "layers": {}}, "it has no layers"),
        ({**damaged(), "symmetric": None}, "lacks layers, group_size or symmetric"),
        ({**damaged(), "layers": {"a": 3}}, "damaged: at layer 'a'"),
        (damaged(elements=0), "damaged"),
        (damaged(bits={}), "damaged"),
        (damaged(bits={"two": {"size": 8, "kl": 0.1}}), "damaged"),
        (damaged(bits={"9": {"size": 8, "kl": 0.1}}), "damaged"),
        (damaged(bits={"2": {"size": 8, "kl": float("nan")}}), "damaged"),
        (damaged(bits={"2": {"size": 8.5, "kl": 0.1}}), "damaged"),
        (damaged(bits={"2": {"size": 8}}), "damaged"),
    ],
)
def test_what_is_no_table_is_refused(source, message):
    assert QllmConfig.from_budget(2.0, damaged(), w_group_size=64).w == 2
    with pytest.raises(ConfigError, match=message):
        QllmConfig.from_budget(4.0, source, w_group_size=64)


def test_a_table_for_other_options_is_refused(table):
    with pytest.raises(ConfigError, match="w_group_size=64"):
        QllmConfig.from_budget(4.0, table, w_group_size=32)
    with pytest.raises(ConfigError, match="w_symmetric=False"):
        QllmConfig.from_budget(4.0, table, w_group_size=64, w_symmetric=True)
    with pytest.raises(ConfigError, match=r"smallest choice of every layer takes 2\.654"):
        QllmConfig.from_budget(2.1, table, w_group_size=64)


def test_a_table_of_another_model_is_refused(stories, table):
    load = lambda: AutoModelForCausalLM.from_pretrained(stories)  # noqa: E731
    config = QllmConfig.from_budget(3.7, table, w_group_size=64)
    with pytest.raises(ModelError, match="means no linear layer"):
        quantize_(float_model("opt"), config)
    fewer = copy.deepcopy(table)
    del fewer["layers"][LAYER]
    with pytest.raises(ConfigError, match=rf"knows no weights of '{LAYER}'.* this model has 11008"):
        quantize_(load(), QllmConfig.from_budget(8.0, fewer, w_group_size=64))
    more = copy.deepcopy(table)
    more["layers"] = {"model.layers.9.mlp.down_proj": table["layers"][LAYER], **table["layers"]}
    with pytest.raises(ConfigError, match=r"11008 weights of 'model\.layers\.9.* this model has no"):
        quantize_(load(), QllmConfig.from_budget(16.0, more, w_group_size=64))
    larger = copy.deepcopy(table)
    larger["layers"][LAYER]["elements"] *= 16
    with pytest.raises(ConfigError, match=f"176128 weights of '{LAYER}'"):
        quantize_(load(), QllmConfig.from_budget(8.0, larger, w_group_size=64))


def test_a_table_of_smaller_scales_is_refused(stories, ids):
    load = lambda dtype: AutoModelForCausalLM.from_pretrained(stories, dtype=dtype)  # noqa: E731
    half = measure_sensitivity(load(torch.float16), calibration=ids[:1], w_group_size=64, bits=(3, 4)).to_dict()
    config = QllmConfig.from_budget(3.8, half, w_group_size=64)
    with pytest.raises(ConfigError, match="scales have a wider dtype"):
        quantize_(load(torch.float32), config)
    quantize_(load(torch.float16), QllmConfig.from_budget(3.8, half, w_group_size=64))


def test_bits_that_a_layer_cannot_bear_are_not_offered(stories, ids, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(stories)
    monkeypatch.setattr(sensitivity, "fake_quantize", lambda x, spec: x * float("nan" if spec.bits == 2 else 1))
    found = measure_sensitivity(model, calibration=ids[:1], w_group_size=64, bits=(2, 3))
    assert {choice.bits for choices in found.layers.values() for choice in choices} == {3}
    with pytest.raises(ModelError, match=r"q_proj at any of 2 bits"):
        measure_sensitivity(model, calibration=ids[:1], w_group_size=64, bits=(2,))
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(CalibrationError, match=r"own predictions .* are not finite"):
        measure_sensitivity(model, calibration=ids[:1], w_group_size=64, bits=(3,))


def test_without_text_nothing_is_measured(model):
    with pytest.raises(CalibrationError, match="bits_per_weight looks at text"):
        measure_sensitivity(model)
    with pytest.raises(ConfigError, match="bit-widths from 2 to 8"):
        measure_sensitivity(model, calibration=torch.ones(1, 8, dtype=torch.int64), bits=(1,))
    with pytest.raises(CalibrationError, match="tokenizer of another model"):
        measure_sensitivity(model, calibration=torch.full((1, 8), 512), w_group_size=64)
    with pytest.raises(ModelError, match="no layer's bits are left to choose"):
        measure_sensitivity(model, calibration=torch.ones(1, 8, dtype=torch.int64), modules_to_not_convert=["*"])
