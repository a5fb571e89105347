"""Keys that are rotated before they are quantized: the same attention, and a smaller error where channels stick out."""

import pytest
import torch
from compiled_graphs import steps
from rotation import enlarge_channels_
from tiny_models import float_model, on_one_thread, prompt

from qllm_hf import QllmConfig, quantize_
from qllm_hf.attention import KvRows, Request, prefer, request
from qllm_hf.cache import QllmCache
from qllm_hf.errors import SchemeError
from qllm_hf.kv_rows import RowFormat
from qllm_hf.loading import load_model
from qllm_hf.rotation import rotate
from qllm_hf.scheme import Scheme, Spec

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

# Attention through torch, in two halves, in code of its own, with latents in place of keys, and with windows.
NAMES = ("llama", "gemma2", "bloom", "deepseek_v3", "mistral")


def logits(model, name, tokens=4):
    """Of the last tokens of a prompt, one by one: [tokens, B, vocabulary]."""
    ids = prompt(name)
    out = model(ids[:, :-tokens], use_cache=True)
    found = []
    for token in range(ids.shape[1] - tokens, ids.shape[1]):
        out = model(ids[:, token : token + 1], past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits[:, -1])
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.oldest
@pytest.mark.parametrize("name", NAMES)
def test_kernels_attend_as_torch_does(name):
    model = quantize_(float_model(name), QllmConfig(kv=4, kv_rotate_keys=True))
    found = logits(model, name)
    with prefer("dequantize"):
        wanted = logits(model, name)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    plain = logits(quantize_(float_model(name), "KV4"), name)
    assert (found - plain).norm() > 1e-4 * plain.norm(), "the rotation changes the codes"


@torch.no_grad()
def test_compiled_graphs_rotate_queries_too():
    model = quantize_(float_model("llama"), QllmConfig(kv=4, kv_rotate_keys=True))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, wanted = (steps(model, forward, "llama") for forward in (compiled, model))
    torch._dynamo.reset()
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


@torch.no_grad()
@pytest.mark.parametrize(("bits", "times"), [(4, 3), (3, 1.5)])  # values are quantized as well, rotated or not
def test_it_helps_where_a_few_channels_are_large(bits, times):
    model = enlarge_channels_(load_model("reference", dtype="float32").eval(), 24)
    ids = torch.randint(5, 200, (2, 120), generator=torch.Generator().manual_seed(0))
    wanted = model(ids).logits.log_softmax(-1)

    def divergence(**options):
        cache = QllmCache(model.config, Scheme(kv=bits, **options))
        model(ids[:, :1], past_key_values=cache)
        found = model(ids[:, 1:], past_key_values=cache).logits.log_softmax(-1)
        return (wanted[:, 1:].exp() * (wanted[:, 1:] - found)).sum(-1).mean().item()

    plain, rotated = divergence(), divergence(kv_rotate_keys=True)
    assert rotated < plain / times, f"{rotated} with, {plain} without"


@torch.no_grad()
def test_a_saved_model_remembers(tmp_path):
    config = QllmConfig(w=4, kv=4, kv_rotate_keys=True, w_group_size=32)
    model = quantize_(float_model("llama"), config)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert again.config.quantization_config.kv_rotate_keys is True
    assert logits(again.eval(), "llama").equal(logits(model.eval(), "llama"))
    without = load_model(str(tmp_path), QllmConfig(kv_rotate_keys=False))
    assert not logits(without.eval(), "llama").equal(logits(model, "llama"))


def test_the_study_turns_no_keys():
    with pytest.raises(SchemeError, match="the study turns no keys"):
        QllmConfig(kv=4, kv_rotate_keys=True, paper_exact=True)
    with pytest.raises(SchemeError, match="kv_rotate_keys=1: give True or False"):
        QllmConfig(kv=4, kv_rotate_keys=1)


def test_another_rotation_would_be_noticed(monkeypatch):
    """The comparison is alive: queries that are not turned say something else."""
    model = quantize_(float_model("llama"), QllmConfig(kv=4, kv_rotate_keys=True))
    with torch.no_grad(), prefer("dequantize"):
        wanted = logits(model, "llama")
    monkeypatch.setattr(request, "rotate", lambda x: x)
    with torch.no_grad():
        found = logits(model, "llama")
    assert (found - wanted).norm() > 1e-3 * wanted.norm()
    assert rotate(torch.ones(2)).tolist() != [1.0, 1.0]


def test_the_room_of_a_static_cache_is_known_with_rotation_too():
    """How many tokens there are goes along with the rows, or all the room would be read."""
    form = RowFormat(Spec(4, 32), 32, torch.float32, rotated=True)
    used = torch.tensor(5)
    rows = KvRows(torch.zeros(1, 1, 9, form.words, dtype=torch.int16), form, used)
    asked = Request(torch.ones(1, 1, 1, 32), rows, rows, torch.ones(1, 1, 1, 9, dtype=torch.bool), False, 1.0)
    assert asked.as_stored().used is used
    assert not asked.as_stored().keys.format.rotated
