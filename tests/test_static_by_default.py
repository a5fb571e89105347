"""On a GPU whose kernels are in use `generate` makes a static cache by itself, where nothing speaks against it."""

import copy
import json
import pickle

import pytest
import torch
from tiny_models import MODELS, float_model, on_one_thread, prompt
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, StaticCache
from transformers.generation.configuration_utils import GenerationMode

from qllm_hf import QllmConfig, attention, generation, hooks, quantize_

pytestmark = pytest.mark.oldest
_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)
GREEDY = GenerationMode.GREEDY_SEARCH


@pytest.fixture
def _on_a_gpu(monkeypatch):
    """All that is asked says so; what is computed is computed here."""
    refuses = generation.refuses_static
    monkeypatch.setattr(generation.gpu, "missing", lambda: None)
    monkeypatch.setattr(generation, "IS_TRACEABLE", True)
    monkeypatch.setattr(generation, "refuses_static", lambda model, _, *others: refuses(model, "cuda", *others))


@pytest.fixture
def caches(monkeypatch):
    """The type of each cache that a forward was given."""
    found = []
    quantize = hooks.quantize_cache_

    def noted(cache, kv_format):
        if not found or found[-1] is not type(cache):
            found.append(type(cache))
        return quantize(cache, kv_format)

    monkeypatch.setattr(hooks, "quantize_cache_", noted)
    return found


def reason(model, device="cuda", kwargs=None, mode=GREEDY, **options):
    return generation.refuses_static(model, device, GenerationConfig(**options), kwargs or {}, mode)


@pytest.mark.usefixtures("_on_a_gpu")
def test_what_speaks_against_it(monkeypatch):
    model = quantize_(float_model("llama"), "KV4")
    assert reason(model) is None
    assert reason(model, mode=GenerationMode.SAMPLE) is None
    chosen = "the caller chose a cache"
    assert reason(model, cache_implementation="dynamic") == chosen
    assert reason(model, kwargs={"past_key_values": DynamicCache()}) == chosen
    assert "no cache" in reason(model, use_cache=False)
    assert "compiled" in reason(model, disable_compile=True)
    assert "beams" in reason(model, mode=GenerationMode.BEAM_SEARCH)
    assert "assistants" in reason(model, mode=GenerationMode.ASSISTED_GENERATION)
    assert "assistants" in reason(model, is_assistant=True)
    assert "chunks" in reason(model, prefill_chunk_size=4)
    with attention.prefer("dequantize"):
        assert "decode" in reason(model)
    model.hf_device_map = {"model": 0, "lm_head": 1}
    assert "several devices" in reason(model)
    del model.hf_device_map
    model.set_attn_implementation("eager")
    assert "another attention" in reason(model)
    model.set_attn_implementation("sdpa")
    assert reason(model) is None
    monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
    assert "does not compile" in reason(model)
    monkeypatch.setattr(generation.gpu, "missing", lambda: "not asked for")
    assert reason(model) == "not asked for"


def test_nothing_changes_on_a_cpu(caches):
    model, ids = quantize_(float_model("llama"), "KV4"), prompt("llama")
    assert "this device" in reason(model, "cpu")
    model.generate(ids, max_new_tokens=2, do_sample=False)
    assert caches == [DynamicCache]


@torch.no_grad()
@pytest.mark.usefixtures("_on_a_gpu")
@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].has_kv])
def test_each_family_generates_the_same(name, caches):
    model, ids = quantize_(float_model(name), "KV8"), prompt(name)
    options = {"max_new_tokens": 4, "do_sample": False, **MODELS[name].generate}
    found = model.generate(ids, **options)
    takes_it = reason(model) is None and generation.METHOD in model.__dict__
    assert caches == [StaticCache if takes_it else DynamicCache]
    assert torch.equal(found, model.generate(ids, cache_implementation="dynamic", **options))
    if name in ("llama", "mistral", "qwen3"):
        assert takes_it


@torch.no_grad()
@pytest.mark.usefixtures("_on_a_gpu")
def test_whoever_chooses_gets_what_was_chosen(caches):
    model, ids = quantize_(float_model("llama"), "KV8"), prompt("llama")
    options = {"max_new_tokens": 4, "do_sample": False}
    wanted = model.generate(ids, **options)
    assert caches == [StaticCache]
    cache = DynamicCache(config=model.config)
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), wanted)
    assert torch.equal(model.generate(ids[:1], prompt_lookup_num_tokens=2, **options), wanted[:1])
    assert model.generate(ids, num_beams=2, **options).shape == wanted.shape
    assert caches == [StaticCache, DynamicCache]


@torch.no_grad()
@pytest.mark.usefixtures("_on_a_gpu")
def test_nothing_of_it_is_kept(tmp_path, caches):
    model, ids = quantize_(float_model("llama"), "W4KV8", w_group_size=32), prompt("llama")
    model.generate(ids, max_new_tokens=2, do_sample=False)
    assert model.generation_config.cache_implementation is None
    model.save_pretrained(tmp_path)
    assert "static" not in json.dumps([json.loads(file.read_text()) for file in tmp_path.glob("*config.json")])
    for other in (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        caches.clear()
        other.generate(ids, max_new_tokens=2, do_sample=False)
        assert caches == [StaticCache]
        assert other.__dict__[generation.METHOD].args == (other,)
    without = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QllmConfig(kv=16))
    assert generation.METHOD not in without.__dict__
    model.dequantize()
    assert generation.METHOD not in model.__dict__
