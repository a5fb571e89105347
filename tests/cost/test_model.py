"""What is predicted without weights is what real tensors, files and caches take, and the published crossovers."""

import csv

import cost as benchmark
import loading
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import MODELS, float_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig
from transformers.pytorch_utils import Conv1D

from qllm_hf.config import QllmConfig
from qllm_hf.cost.model import KvGroup, ModelCost, cost_of
from qllm_hf.cost.work import Work
from qllm_hf.errors import ConfigError, ModelError, QllmWarning
from qllm_hf.loading import model_on_meta

NO_WORK = Work(0, 0, 0, 0, 0, 0, 0, 0)
LLAMA2 = {"vocab_size": 32000, "tie_word_embeddings": False, "max_position_embeddings": 4096}
# name -> (config, tokens in thousands whose FP16 KV cache takes as much as the FP16 weights)
PUBLISHED = {
    "LLaMA2-7B": (
        LlamaConfig(**LLAMA2, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
        25.7,
    ),
    "LLaMA2-13B": (
        LlamaConfig(**LLAMA2, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
        31.8,
    ),
    "LLaMA2-70B": (
        LlamaConfig(
            **LLAMA2,
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
        ),
        421,
    ),
    "GPT-3 175B": (GPT2Config(n_embd=12288, n_layer=96, n_head=96), 74),
}


def on_meta(config, dtype=torch.float16):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def made_up(*groups, weights=1000, states=0):
    return ModelCost("FP16", "float16", weights, 500, 500, groups, states, NO_WORK)


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("name", "scheme"), [(n, s) for n in benchmark.FAMILIES for s in benchmark.SCHEMES if benchmark.makes_sense(n, s)]
)
def test_predicted_bytes_are_those_of_tensors_files_and_caches(name, scheme):
    rows = list(benchmark.compare(name, lambda: float_model(name), scheme, dict(MODELS[name].generate)))
    assert {row["quantity"] for row in rows} == {"weights", "file", "kv", "states"}
    for row in rows:
        # a packed checkpoint has one byte more, a tensor that other programs stumble over
        guard = 1 if row["quantity"] == "file" and "W" in scheme else 0
        assert row["predicted"] == row["measured"] - guard, row
    assert any(row["measured"] for row in rows if row["quantity"] == "kv") == MODELS[name].has_kv
    assert any(row["measured"] for row in rows if row["quantity"] == "states") == (name in ("mamba", "jamba"))


def test_a_wrong_prediction_would_be_noticed(monkeypatch):
    monkeypatch.setattr(KvGroup, "kept", lambda self, tokens: tokens)  # as if there were no windows
    rows = list(benchmark.compare("mistral", lambda: float_model("mistral"), "FP16"))
    ratios = {row["tokens"]: row["ratio"] for row in rows if row["quantity"] == "kv"}
    assert ratios[5] == 1
    assert ratios[40] == pytest.approx(40 / 7, rel=1e-5)


def test_a_model_of_a_billion_parameters_as_it_was_measured():
    """What is predicted today is what benchmarks/loading.py measured."""
    with (benchmark.REPO / "benchmarks" / "results" / "loading.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    model = on_meta(LlamaConfig(**loading.SHAPE), torch.bfloat16)
    for row in rows:
        predicted = cost_of(model, QllmConfig.from_scheme(row["scheme"])).weight_bytes
        assert predicted / 1e6 == pytest.approx(float(row["packed_model_mb"]), abs=1e-3), row["scheme"]
    assert len(rows) == 4


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_crossovers(name):
    config, thousands = PUBLISHED[name]
    cost = cost_of(on_meta(config), None)
    crossover = cost.crossover()
    assert round(crossover / 1000, 1 if thousands < 50 else 0) == thousands
    assert cost.kv_bytes(1, crossover) > cost.weight_bytes >= cost.kv_bytes(1, crossover - 1)
    assert cost.active_params == cost.params


def test_fewer_weight_bits_move_the_crossover_down_and_fewer_kv_bits_up():
    model = on_meta(PUBLISHED["LLaMA2-7B"][0])
    crossover = {s: cost_of(model, QllmConfig.from_scheme(s)).crossover() for s in ("W4", "KV4", "W4KV4")}
    assert crossover["W4"] < 25_000 < crossover["W4KV4"] < crossover["KV4"]


def test_mixtral_uses_13_of_its_47_billion_parameters():
    cost = cost_of(on_meta(MixtralConfig(tie_word_embeddings=False)), QllmConfig(w=4))
    assert (round(cost.params / 1e9, 1), round(cost.active_params / 1e9, 1)) == (46.7, 12.9)
    assert (cost.work.experts, cost.work.experts_per_token) == (8, 2)
    # experts are packed too, and what is not an expert is the rest of the model
    dense = cost_of(on_meta(PUBLISHED["LLaMA2-7B"][0]), QllmConfig(w=4))
    assert cost.work.expert_bytes / (cost.work.expert_elements / 2) == pytest.approx(4.1875 / 4, rel=1e-4)
    assert dense.work.expert_bytes == 0


def test_shared_experts_are_always_active():
    cost = cost_of(benchmark.on_meta(float_model("deepseek_v3")), None)
    model = float_model("deepseek_v3")
    routed = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert cost.work.expert_elements == routed
    assert cost.params - cost.active_params == routed // 2  # 2 of 4
    assert any("shared_experts" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "deepseek_v3", "falcon", "gpt_oss", "jamba", "mamba2"])
def test_products_are_those_of_all_matrices(name):
    """Tied or not: each matrix is counted once, embeddings only where the head uses them."""
    model = benchmark.on_meta(float_model(name))
    work = cost_of(model, None).work
    head = model.get_output_embeddings().weight
    matrices = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear | Conv1D)}
    linear = {key: w for key, w in matrices.items() if w is not head}
    experts = work.expert_elements * work.experts_per_token // (work.experts or 1)
    routers = work.float_products - experts - sum(w.numel() for w in linear.values())
    assert work.head_products == head.numel()
    assert 0 <= routers <= 0.03 * work.float_products  # some routers are no nn.Linear
    lookups = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not head}
    assert work.lookup_bytes == 4 * sum(weight.numel() for weight in lookups.values())


def test_inputs_of_eight_bits_are_integer_products():
    model = benchmark.on_meta(float_model("llama"))
    work = {s: cost_of(model, QllmConfig.from_scheme(s)).work for s in ("W4", "W8A8", "W4A4")}
    assert work["W4"].integer_products == work["W8A8"].float_products == 0
    assert work["W4"].float_products == work["W8A8"].integer_products == work["W4A4"].integer_products
    assert work["W4"].head_products == work["W8A8"].head_products > 0


def test_layers_that_stay_in_floating_point_count_as_such(stories):
    model = model_on_meta(str(stories))
    whole, part = (cost_of(model, QllmConfig(w=4, modules_to_not_convert=keep)) for keep in (None, ["*.v_proj"]))
    assert part.weight_bytes > whole.weight_bytes
    with pytest.raises(ModelError, match="nothing"):
        cost_of(model, QllmConfig(w=4, modules_to_not_convert=["nothing"]))


def test_a_model_without_keys_and_values_has_no_crossover():
    model = benchmark.on_meta(float_model("mamba"))
    cost = cost_of(model, None)
    assert (cost.kv_groups, cost.crossover(), cost.kv_bytes(8, 10**6)) == ((), None, 0)
    assert cost.state_bytes > 0
    assert cost.total_bytes(3, 10) == cost.total_bytes(3, 10**6) == cost.weight_bytes + 3 * cost.state_bytes


def test_rwkv_keeps_a_list_of_states():
    cost = cost_of(benchmark.on_meta(float_model("rwkv")), None)
    assert cost.state_bytes == 5 * 64 * 4 * 4  # five states of 64 numbers in each of 4 layers


def test_a_window_that_is_full_too_early_means_no_crossover():
    cost = cost_of(benchmark.on_meta(float_model("mistral")), None)
    (group,) = cost.kv_groups
    assert group.window == 8
    assert cost.kv_bytes(2, 10**9) == 2 * 7 * cost.kv_bytes_per_token
    assert cost.crossover() is None
    # so many sequences that even full windows take more than the weights
    batch = cost.weight_bytes // (5 * cost.kv_bytes_per_token)
    assert cost.crossover(batch) == 6


def test_some_layers_with_windows():
    cost = made_up(KvGroup(1, 10, 5, 0), KvGroup(1, 1, None, 0))
    # 4 tokens are kept by the window: 40, and one byte a token
    assert cost.kv_bytes(1, 100) == 140
    assert cost.crossover() == 961
    assert cost.crossover(batch=50) == 2


@given(st.integers(1, 10**7), st.integers(0, 60), st.integers(0, 60), st.integers(2, 50), st.integers(1, 20))
def test_crossover_is_the_first_length_that_is_more(weights, sliding, full, window, batch):
    cost = made_up(KvGroup(1, sliding, window, 0), KvGroup(1, full, None, 0), weights=weights)
    found = cost.crossover(batch)
    if found is None:
        assert full == 0
        assert cost.kv_bytes(batch, 10**9) <= weights
    else:
        assert cost.kv_bytes(batch, found) > weights
        assert found == 1 or cost.kv_bytes(batch, found - 1) <= weights


@given(st.integers(1, 100), st.integers(1, 1000), st.integers(2, 50))
def test_more_tokens_and_sequences_never_take_less(batch, tokens, window):
    cost = made_up(KvGroup(2, 7, window, 0), KvGroup(1, 3, None, 0), states=5)
    assert cost.total_bytes(batch, tokens) < cost.total_bytes(batch, tokens + 1)
    assert cost.total_bytes(batch, tokens) < cost.total_bytes(batch + 1, tokens)
    assert cost.kv_bytes(batch, tokens) == batch * cost.kv_bytes(1, tokens)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "3"])
def test_sizes_that_cannot_be(value):
    cost = made_up(KvGroup(1, 10, None, 0))
    with pytest.raises(ConfigError, match="batch="):
        cost.kv_bytes(value, 1)
    with pytest.raises(ConfigError, match="tokens="):
        cost.total_bytes(1, value)
    with pytest.raises(ConfigError, match="batch="):
        cost.crossover(value)


def test_what_is_not_known_is_not_zero(monkeypatch):
    model = benchmark.on_meta(float_model("llama"))

    def forward(self, *args, **kwargs):
        raise RuntimeError("needs values")

    monkeypatch.setattr(type(model), "forward", forward)
    cost = cost_of(model, QllmConfig(w=4))
    assert cost.weight_bytes > 0
    for ask in (lambda: cost.kv_bytes(1, 1), lambda: cost.total_bytes(1, 1), cost.crossover):
        with pytest.raises(ModelError, match=r"not known: the architecture does not run without weights \(needs"):
            ask()


def test_kv_bits_without_keys_and_values_change_nothing():
    model = benchmark.on_meta(float_model("mamba"))
    assert cost_of(model, QllmConfig(kv=4)).total_bytes(2, 50) == cost_of(model, None).total_bytes(2, 50)


def test_nothing_is_changed_and_no_warning_is_given(recwarn):
    model = benchmark.on_meta(float_model("llama"))
    names = [name for name, _ in model.named_parameters()]
    cost_of(model, QllmConfig(w=4, kv=4))
    assert [name for name, _ in model.named_parameters()] == names
    assert not [each for each in recwarn if issubclass(each.category, QllmWarning)]
