"""Models of transformers attend to packed rows by themselves, and say the same as with decoded ones."""

import pytest
import torch
from tiny_models import MODELS, float_model, on_one_thread, prompt
from transformers import StaticCache

from qllm_hf import quantize_
from qllm_hf.attention import ATTENTION, native, prefer, reference, registry

pytestmark = pytest.mark.oldest
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

# These call torch's attention with the keys and values of their cache.
DIRECT = ("llama", "vicuna", "falcon", "falcon_new", "mistral", "mixtral", "glm", "qwen3", "phi3", "gpt2", "jamba")


@pytest.fixture
def histories(monkeypatch):
    """Whether each request that came had a history; the reference answers them."""
    found = []

    def run(request):
        found.append(request.keys.tokens > request.query.shape[2])
        return ATTENTION[-1].run(request)

    def refuses(request):
        return None if request.keys.tokens > request.query.shape[2] else "no history"

    taker = registry.Implementation("taker", "", run, refuses)
    monkeypatch.setattr(registry, "ATTENTION", (taker, *ATTENTION))
    return found


def left_padded(name):
    ids = prompt(name)
    mask = torch.ones_like(ids)
    ids[0, :6], mask[0, :6] = 0, 0
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize("name", DIRECT)
def test_each_decoded_token_attends_to_packed_rows(name, histories):
    model = quantize_(float_model(name), "KV4")
    ids, mask = left_padded(name)
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": mask, **MODELS[name].generate}
    got = model.generate(ids, **options)
    assert len(histories) == 4 * sum(hasattr(layer, "kv_format") for layer in _cache(model, ids).layers)
    with prefer("dequantize"):
        assert torch.equal(model.generate(ids, **options), got)


def _cache(model, ids):
    with prefer("dequantize"):
        return model(ids, use_cache=True).past_key_values


# These make their own softmax: with a soft cap, with sinks, with the slopes of ALiBi, or in a way of their own.
IN_HALVES = ("gemma2", "gpt_oss", "mpt", "gptj")


@torch.no_grad()
@pytest.mark.parametrize("name", IN_HALVES)
def test_models_with_a_softmax_of_their_own_multiply_packed_rows(name, monkeypatch):
    """Both products of each decoded token and layer."""
    made = []
    monkeypatch.setattr(native, "refuses_half", lambda x, rows: "no history" if rows.tokens == x.shape[2] else None)
    monkeypatch.setattr(native, "scores", lambda x, keys: made.append("scores") or x @ repeated(keys, x).mT)
    monkeypatch.setattr(native, "weighted", lambda x, values: made.append("values") or x @ repeated(values, x))
    model = quantize_(float_model(name), "KV4")
    ids, mask = left_padded(name)
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": mask, **MODELS[name].generate}
    got = model.generate(ids, **options)
    assert made == ["scores", "values"] * (4 * 2)
    with prefer("dequantize"):
        assert torch.equal(model.generate(ids, **options), got)


def repeated(rows, x):
    return reference.repeated(rows.decode(), x.shape[1] // rows.rows.shape[1])


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_decoded_rows(name):
    """One token and a few, with whatever implementation this machine has, up to the order of additions."""
    if not MODELS[name].has_kv:
        pytest.skip("no keys and values")
    model, ids = quantize_(float_model(name), "KV8"), prompt(name)
    ids, mask = left_padded(name)

    def logits():
        cache = model(ids[:, :-4], attention_mask=mask[:, :-4], use_cache=True).past_key_values
        few = model(ids[:, -4:-1], attention_mask=mask[:, :-1], past_key_values=cache).logits
        return torch.cat([few, model(ids[:, -1:], attention_mask=mask, past_key_values=cache).logits], 1)

    with prefer("dequantize"):
        expected = logits()
    # noise may move a value to the next code, so the bound is that of a few such steps
    assert (logits() - expected).abs().max() < 2e-2


@torch.no_grad()
def test_a_static_cache_is_attended_to_as_far_as_its_mask_goes(histories):
    model, ids = quantize_(float_model("llama"), "KV4"), prompt("llama")
    cache = StaticCache(config=model.config, max_cache_len=50)
    got = model.generate(ids, past_key_values=cache, max_new_tokens=5, do_sample=False, disable_compile=True)
    assert any(histories)
    with prefer("dequantize"):
        assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), got)


def test_training_decodes(histories):
    model, ids = quantize_(float_model("llama"), "KV8").train(), prompt("llama")
    model(ids, labels=ids, use_cache=True).loss.backward()
    assert not histories
    assert all(p.grad is not None for name, p in model.named_parameters() if "k_proj" in name)


@torch.no_grad()
def test_weights_of_attention_can_be_asked_for():
    model, ids = quantize_(float_model("llama"), "KV8"), prompt("llama")
    model.set_attn_implementation("eager")
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    out = model(ids[:, -1:], past_key_values=cache, output_attentions=True)
    assert out.attentions[0].shape == (2, 4, 1, ids.shape[1])
