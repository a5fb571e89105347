"""Every way to generate gives the tokens of the float model whose weights, K and V are rounded from outside."""

import functools

import pytest
import torch
from family_checks import (
    GENERATION_SCHEME,
    MODES,
    NEW_TOKENS,
    REFUSED,
    REMARKS,
    check_mode,
    generate,
    held_layers,
    packed_and_simulated,
    parse,
)
from simulated_models import rounded_kv
from tiny_models import MODELS, chat_tokenizer, float_model, on_one_thread, prompt
from transformers import DynamicCache, GenerationMixin

from qllm_hf import quantize_

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

CORE = ("llama", "mistral", "gemma2", "falcon", "mixtral", "deepseek_v3", "jamba")
models = functools.lru_cache(maxsize=2)(packed_and_simulated)


def _cells():
    for name in MODELS:
        for mode in MODES:
            marks = [pytest.mark.oldest] if name in CORE else []
            yield pytest.param(name, mode, marks=marks, id=f"{name}-{mode.replace(' ', '_')}")


@pytest.mark.parametrize(("name", "mode"), [*_cells()])
def test_generation(name, mode):
    """The same tokens; or, for what transformers refuses, the same error from both models."""
    result = check_mode(name, mode, *models(name))
    if mode in REFUSED.get(name, {}):
        assert result.startswith("refused"), "transformers does it now: take it out of the table"
    else:
        assert result == "same"


@pytest.mark.parametrize("name", MODELS)
def test_generation_keeps_its_cache_packed(name):
    packed, _ = models(name)
    held, tiny = held_layers(name, packed), MODELS[name]
    assert held.get("simulated", 0) == 0
    assert (held.get("packed", 0) > 0) == tiny.has_kv
    if name not in ("jamba", "mamba", "mamba2"):  # whose other layers have states only
        assert held.get("float", 0) == 0


@pytest.mark.oldest
@pytest.mark.parametrize("mode", ["greedy", "beam search", "sampling", "assisted", "static cache", "without cache"])
def test_comparison_notices_other_bits(mode):
    """The check itself is alive: one bit less in the cache changes tokens."""
    packed = quantize_(float_model("llama"), "W4KV3", w_group_size=32)
    assert check_mode("llama", mode, packed, models("llama")[1]).startswith("differs")


def test_remarks_are_about_what_is_tested():
    assert {mode for _, mode in REMARKS} <= MODES.keys()
    assert {name for name, _ in REMARKS} | REFUSED.keys() <= MODELS.keys()


@torch.no_grad()
def test_jamba_in_chunks_goes_wrong_without_us():
    """The defect that REMARKS mentions; when this fails, transformers has repaired it."""
    model, ids = float_model("jamba"), prompt("jamba")
    cache = DynamicCache(config=model.config)
    model(ids[:, :10], past_key_values=cache)
    chunked = model(ids[:, 10:], past_key_values=cache).logits[:, -1]
    assert (chunked - model(ids).logits[:, -1]).abs().max() > 0.01


@torch.no_grad()
def test_conversation_with_a_chat_template():
    """Two turns through vicuna's template, the second one from the cache of the first: as in one go."""
    tokenizer, (packed, simulated) = chat_tokenizer(), models("vicuna")
    messages, result = [], None
    for question in ("Hello?", "And then?"):
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = inputs["input_ids"]
        assert result is None or torch.equal(ids[:, : result.sequences.shape[1]], result.sequences)
        again = generate(packed, "vicuna", ids)
        with rounded_kv("vicuna", parse(GENERATION_SCHEME)):
            expected = generate(simulated, "vicuna", ids)
        cache = result.past_key_values if result else None
        result = generate(packed, "vicuna", ids, past_key_values=cache, return_dict_in_generate=True)
        assert torch.equal(again, expected)
        assert torch.equal(result.sequences, expected)
        messages.append({"role": "assistant", "content": tokenizer.decode(expected[0, ids.shape[1] :])})
    assert result.past_key_values.get_seq_length() == ids.shape[1] + NEW_TOKENS - 1


def test_contrastive_search_left_transformers():
    """It is remote code on the Hub since 5.0; when it is back, it belongs in MODES."""
    assert not hasattr(GenerationMixin, "_contrastive_search")
