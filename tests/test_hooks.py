"""KV quantization is in force wherever keys and values exist: scoring, training, decoding, copies of the model."""

import copy
import pickle

import pytest
import torch
from simulated_models import rounded_kv
from tiny_models import MODELS, float_model, on_one_thread, prompt
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from qllm_hf import CacheError, ModelError, QllmConfig, QllmWarning, Scheme, quantize_
from qllm_hf.cache import describe_cache
from qllm_hf.hooks import attach_kv, detach_kv, find_attentions
from qllm_hf.uniform import fake_quantize

pytestmark = pytest.mark.oldest

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

# One of each way in which attention gets its cache: a shared interface, a window, code of its own, latents, hybrids.
WAYS = ["llama", "gemma2", "falcon", "bloom", "mpt", "gptj", "gpt2", "deepseek_v3", "jamba", "falcon_h1"]


def quantized(name, scheme="KV4"):
    return quantize_(float_model(name), scheme, w_group_size=32)


def distance(a, b):
    return (a - b).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("name", WAYS)
def test_scoring_without_a_cache_sees_kv_bits(name):
    """Or log-likelihood tasks would measure a float KV cache."""
    model, ids = quantized(name), prompt(name)
    with rounded_kv(name, Scheme(kv=4)):
        reference = float_model(name)(ids, use_cache=True).logits
    scored = model(ids, use_cache=False)
    assert distance(scored.logits, reference) == 0
    assert scored.get("past_key_values") is None
    assert distance(model(ids, use_cache=True).logits, reference) == 0
    assert distance(float_model(name)(ids).logits, reference) > 0.01


@torch.no_grad()
def test_the_score_of_a_text_changes():
    model, plain, ids = quantized("llama", "KV3"), float_model("llama"), prompt("llama")
    losses = [m(ids, labels=ids, use_cache=False).loss.item() for m in (model, plain)]
    assert abs(losses[0] - losses[1]) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_packed_sequences_do_not_see_each_other(name):
    """Several texts in a row, told apart by positions, need the mask that transformers builds without a cache."""
    first, second = prompt(name, 1, seed=1), prompt(name, 1, seed=2)
    positions = torch.arange(first.shape[1])[None]
    row, restarting = torch.cat([first, second], -1), torch.cat([positions, positions], -1)
    for model in (float_model(name), quantized(name)):
        alone = model(second, use_cache=False).logits
        together = model(row, position_ids=restarting, use_cache=False).logits[:, first.shape[1] :]
        assert distance(alone, together) < 1e-5
        mixed = model(row, use_cache=False).logits[:, first.shape[1] :]
        assert distance(alone, mixed) > 0.01, "this prompt would not notice a lost mask"


@torch.no_grad()
def test_padding_mask_is_respected_without_a_cache():
    model, ids = quantized("llama"), prompt("llama", 1)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], -1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for use_cache in (False, True):
        got = model(padded, attention_mask=mask, position_ids=positions, use_cache=use_cache).logits[:, 5:]
        assert distance(got, model(ids, use_cache=use_cache).logits) < 1e-5


# --- training


def gradients(model, ids, **options):
    model.zero_grad()
    model(ids, labels=ids, **options).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("name", ["llama", "falcon", "mistral", "deepseek_v3"])
def test_gradients_pass_through_rounded_keys_and_values(name, use_cache):
    """Straight through: at 8 bits they are nearly those of the float model, and not 0 for K and V projections."""
    ids = prompt(name)
    plain = gradients(float_model(name).train(), ids, use_cache=use_cache)
    ours = gradients(quantized(name, "KV8").train(), ids, use_cache=use_cache)
    assert ours.keys() == plain.keys()
    for parameter, gradient in plain.items():
        assert distance(ours[parameter], gradient) < 0.1 * gradient.abs().max() + 1e-6, parameter


def test_gradient_checkpointing_gives_the_same_gradients():
    ids, model = prompt("llama"), quantized("llama").train()
    expected = gradients(model, ids, use_cache=False)
    model.gradient_checkpointing_enable()
    got = gradients(model, ids)  # transformers turns the cache off by itself
    assert expected.keys() == got.keys()
    assert all(distance(got[name], expected[name]) < 1e-6 for name in got)
    assert any("k_proj" in name and got[name].abs().max() > 0 for name in got)


def test_training_with_a_static_cache_is_refused():
    model = quantized("llama").train()
    with pytest.raises(CacheError, match="use_cache=False"):
        model(prompt("llama"), past_key_values=StaticCache(config=model.config, max_cache_len=64))


# --- the hooks themselves


@torch.no_grad()
def test_positional_arguments():
    """input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache."""
    model, ids, cache = quantized("llama"), prompt("llama"), DynamicCache()
    expected = model.model(input_ids=ids, use_cache=True)
    got = model.model(ids, None, None, cache)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    assert describe_cache(cache)["packed"] == 2
    got = model.model(ids, None, None, None, None, True)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    assert describe_cache(got.past_key_values)["packed"] == 2
    got = model.model(ids, None, None, None, None, False)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    assert got.past_key_values is None


@torch.no_grad()
def test_embeddings_as_input():
    model, ids = quantized("llama"), prompt("llama")
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=True)
    assert torch.equal(embedded.logits, model(ids).logits)


@torch.no_grad()
def test_an_attention_module_called_by_itself():
    """As continuous batching and pipelines do: the decoder hook never sees that cache."""
    model = quantized("llama")
    attention, rotary = model.model.layers[0].self_attn, model.model.rotary_emb
    hidden, positions = torch.randn(1, 5, 64), torch.arange(5)[None]
    embeddings = rotary(hidden, positions)
    cache = DynamicCache(config=model.config)
    cached, _ = attention(hidden, embeddings, None, past_key_values=cache)
    alone, _ = attention(hidden, embeddings, None)
    positional, _ = attention(hidden, embeddings, None, None)
    assert torch.equal(cached, alone)
    assert torch.equal(positional, alone)
    assert describe_cache(cache)["packed"] == 2
    detach_kv(model)
    assert distance(attention(hidden, embeddings, None)[0], alone) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "falcon", "mixtral", "gpt_oss", "jamba"])
@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_has_working_hooks_of_its_own(name, twin_of):
    model, ids = quantized(name, "W4KV4"), prompt(name)
    expected = model(ids, use_cache=False).logits
    twin = twin_of(model)
    assert torch.equal(twin(ids, use_cache=False).logits, expected)
    assert torch.equal(twin(ids, use_cache=True).logits, expected)
    detach_kv(twin)
    assert distance(twin(ids, use_cache=False).logits, expected) > 0.01
    assert torch.equal(model(ids, use_cache=False).logits, expected), "the copy took the original's hooks away"
    attach_kv(twin, Scheme(kv=4))
    assert torch.equal(twin(ids, use_cache=True).logits, expected)


@torch.no_grad()
def test_attaching_again_replaces():
    model, ids = float_model("llama"), prompt("llama")
    expected = quantized("llama", "KV3")(ids).logits
    assert attach_kv(model, Scheme(kv=8)) == attach_kv(model, Scheme(kv=3)) == 2
    assert torch.equal(model(ids).logits, expected)
    assert torch.equal(model(ids, use_cache=False).logits, expected)
    attach_kv(model, Scheme())
    assert torch.equal(model(ids).logits, float_model("llama")(ids).logits)


@pytest.mark.parametrize("name", MODELS)
def test_every_attention_module_is_found(name):
    """Once per layer that caches keys and values, and nothing around it."""
    model = float_model(name)
    expected = 0
    if MODELS[name].has_kv:
        layers = DynamicCache(config=model.config).layers
        expected = sum(hasattr(layer, "update") for layer in layers)
    assert len(find_attentions(model)) == expected


@torch.no_grad()
def test_cache_of_transformers_own_quantization_is_refused():
    pytest.importorskip("optimum.quanto")
    with pytest.raises(CacheError, match="cache_implementation='quantized'"):
        quantized("llama").generate(prompt("llama"), max_new_tokens=2, cache_implementation="quantized")


def test_encoder_decoder_is_left_alone_with_a_warning():
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    model = T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0)).eval()
    ids = torch.randint(3, 60, (1, 6))
    expected = model(input_ids=ids, decoder_input_ids=ids).logits
    with pytest.warns(QllmWarning, match="encoder-decoder"):
        quantize_(model, "KV4")
    assert torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, expected)
    assert model.generate(ids, max_new_tokens=3).shape[1] == 4


def test_model_without_attention_over_a_cache_is_refused():
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4))
    with pytest.raises(ModelError, match="no attention module"):
        quantize_(model, "KV4")


# --- one token at a time, on a trained model


@pytest.fixture(scope="module")
def story(stories, tinystories_text):
    return AutoTokenizer.from_pretrained(stories)(tinystories_text[0], return_tensors="pt").input_ids


@torch.no_grad()
def one_by_one(model, ids):
    """Logits [tokens, vocabulary] and the cache after feeding token by token."""
    cache, steps = DynamicCache(config=model.config), []
    for position in range(ids.shape[1]):
        steps.append(model(ids[:, position : position + 1], past_key_values=cache).logits[0, -1])
    return torch.stack(steps), cache


def load(stories, scheme, dtype):
    config = QllmConfig.from_scheme(scheme, w_group_size=32) if scheme else None
    return AutoModelForCausalLM.from_pretrained(stories, quantization_config=config, dtype=dtype).eval()


def flipped(one, other):
    """Whether a code differs between two caches, for each token and each value of it: [tokens, values]."""
    differences = [
        (getattr(a, part) - getattr(b, part))[0].transpose(0, 1).flatten(1).abs()  # [tokens, heads * head dim]
        for a, b in zip(one.layers, other.layers, strict=True)
        for part in ("keys", "values")
    ]
    return torch.cat(differences, -1) > 1e-3


@pytest.mark.parametrize("scheme", ["KV8", "KV4", "KV2", "W4KV4"])
@torch.no_grad()
def test_decoding_equals_scoring(stories, story, scheme):
    """In float32, with no more noise than the float model has.

    Until a value lies so close to a boundary that noise decides on its code: at 8 bits a step is 255 times
    smaller than the range, so this happens to one value in some thousands.
    """
    ids = story[:, :40]
    plain, model = load(stories, None, torch.float32), load(stories, scheme, torch.float32)
    noise = distance(plain(ids).logits[0], one_by_one(plain, ids)[0])
    full = model(ids, use_cache=True)
    logits, cache = one_by_one(model, ids)
    flips = flipped(cache, full.past_key_values)
    same = int((~flips.any(-1)).long().cumprod(0).sum())  # tokens before the first flip
    assert flips.float().mean() < 1e-3, "codes differ more often than noise explains"
    assert same > 0
    assert distance(full.logits[0, :same], logits[:same]) < 4 * noise
    assert noise < 5e-5  # of logits up to 20
    assert torch.equal(full.logits, model(ids, use_cache=False).logits)


@pytest.mark.parametrize("scheme", ["KV8", "KV4", "KV2", "W4KV4"])
@torch.no_grad()
def test_decoding_equals_scoring_in_double_precision(stories, story, scheme):
    """Here noise is too small for a code to differ, so all tokens must agree."""
    ids, model = story[:, :64], load(stories, scheme, torch.float64)
    assert distance(model(ids, use_cache=False).logits[0], one_by_one(model, ids)[0]) < 1e-9


@torch.no_grad()
def test_the_reference_rounds_as_the_cache_does(stories, story):
    """What the cache holds in its first layer is the rounded form of what the float model holds there."""
    plain, ours, ids = load(stories, None, torch.float32), load(stories, "KV4", torch.float32), story[:, :32]
    floats = plain(ids, use_cache=True).past_key_values.layers[0]
    held = ours(ids, use_cache=True).past_key_values.layers[0]
    spec = Scheme(kv=4).kv_spec(8)
    assert torch.equal(held.keys, fake_quantize(floats.keys, spec))
    assert torch.equal(held.values, fake_quantize(floats.values, spec))
