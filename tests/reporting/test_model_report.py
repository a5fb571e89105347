"""Reports add up, and say what the model itself and its files say."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import MODELS, float_model
from torch import nn
from transformers import AutoModelForCausalLM

import qllm_hf
from qllm_hf import cache_layers
from qllm_hf.cache import cache_nbytes
from qllm_hf.checkpoint import read_checkpoint
from qllm_hf.errors import ModelError, QllmWarning
from qllm_hf.loading import model_on_meta, save_model
from qllm_hf.ops import prefer
from qllm_hf.reporting.kv import kv_report
from qllm_hf.reporting.model import plan_report, report, scheme_of
from qllm_hf.reporting.tensors import parameter_bytes
from qllm_hf.reporting.text import WIDTH
from qllm_hf.reporting.values import Report
from qllm_hf.scheme import Scheme

# One of each kind: tied and untied heads, Conv1D, fused and biased experts, grouped heads, windows, latents, states.
FAMILIES = (
    "llama",
    "falcon",
    "gpt2",
    "mixtral",
    "gpt_oss",
    "gemma3_text",
    "deepseek_v3",
    "jamba",
    "falcon_h1",
    "mamba",
)
GUARD = 1
"""Bytes of the tensor that makes a packed checkpoint unreadable for other programs."""


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the state dict, tied tensors once: counted in another way than the report does."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in model.state_dict().values()}
    return sum(storage.nbytes() for storage in storages.values())


def float_elements(model: nn.Module) -> int:
    return sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())


def assert_adds_up(result: Report) -> None:
    quantized, kept = result.quantized, result.kept
    kept_bytes = sum(group.bytes for group in kept)
    assert result.elements == sum(group.elements for group in (*quantized, *kept))
    assert result.parameter_bytes_before == sum(group.bytes_before for group in quantized) + kept_bytes
    assert result.parameter_bytes_after == sum(group.bytes_after for group in quantized) + kept_bytes
    assert result.linear_bytes_before - result.linear_bytes_after == (
        result.parameter_bytes_before - result.parameter_bytes_after
    )
    if quantized:
        assert result.bits_per_weight == pytest.approx(result.bits_per_weight_expected, rel=0.01)
    assert result.kv_bytes_per_token == sum(group.bytes_per_token_after for group in result.kv.groups)
    assert all(len(line) <= WIDTH for line in str(result).splitlines())
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


@pytest.fixture
def loaded(stories):
    def load(**options):
        config = qllm_hf.QllmConfig(**options) if options else None
        return AutoModelForCausalLM.from_pretrained(stories, quantization_config=config)

    return load


def test_numbers_of_a_model_worked_out_by_hand(loaded):
    result = qllm_hf.report(loaded(w=4, kv=4))
    assert_adds_up(result)
    # per layer: q and o 64x64, k and v 32x64, gate and up 172x64, down 64x172
    weights = 5 * (2 * 64 * 64 + 2 * 32 * 64 + 2 * 172 * 64 + 64 * 172)
    assert [(g.kind, g.bits, g.group_size, g.activation_bits, g.weights, g.elements) for g in result.quantized] == [
        ("linear", 4, 128, 16, 35, weights)
    ]
    # rows of 64 are one group; rows of 172 (86 bytes of codes) are two; a group has a float32 scale and a byte
    rows = 5 * (2 * 64 + 2 * 32 + 2 * 172)
    assert result.quantized[0].bytes_after == rows * (32 + 5) + 5 * 64 * (86 + 2 * 5)
    assert result.linear_coverage == 1
    assert result.parameter_coverage == pytest.approx(weights / 260_032)
    # a row of 8 codes is 2 words, its float32 scale 2, its zero point 1; 4 heads, keys and values, 5 layers
    assert (result.kv_bytes_per_token_before, result.kv_bytes_per_token) == (5 * 4 * 2 * 8 * 4, 5 * 4 * 2 * 5 * 2)


def test_bytes_are_those_of_the_model_and_of_its_files(loaded, tmp_path):
    before, model = loaded(), loaded(w=4, kv=8)
    result = report(model)
    assert result.elements == float_elements(before)
    assert result.parameter_bytes_before == stored_bytes(before) == report(before).parameter_bytes_after
    assert result.parameter_bytes_after == stored_bytes(model) == parameter_bytes(model)
    checkpoint = read_checkpoint(save_model(model, None, tmp_path / "out"))
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) == result.parameter_bytes_after + GUARD


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    model = float_model(name)
    elements, nbytes, kv_before = float_elements(model), stored_bytes(model), measured_kv(model)
    planned = plan_report(model, qllm_hf.QllmConfig(w=4, kv=4 if MODELS[name].has_kv else 16, a=8, w_group_size=32))
    scheme = "W4g32A8KV4" if MODELS[name].has_kv else "W4g32A8"
    result = report(qllm_hf.quantize_(model, scheme))
    assert_adds_up(result)
    assert (result.elements, result.parameter_bytes_before) == (elements, nbytes)
    assert result.parameter_bytes_after == stored_bytes(model)
    assert not result.kv.unknown
    assert (result.kv_bytes_per_token_before, result.kv_bytes_per_token) == (kv_before, measured_kv(model))
    assert result.kv.keys_only == MODELS[name].keys_only
    assert bool(result.kv.groups) == MODELS[name].has_kv
    assert {**planned.to_dict(), "origin": "measured"} == result.to_dict(), "a plan must predict what is measured then"


def measured_kv(model: nn.Module, tokens: int = 3) -> float:
    """Bytes per token of the cache that a real forward leaves behind, 0 if it leaves none."""
    with torch.no_grad():
        cache = getattr(model(torch.ones(1, tokens, dtype=torch.long), use_cache=True), "past_key_values", None)
    return 0 if cache is None else cache_nbytes(cache) / tokens


def test_what_a_sliding_layer_keeps_is_said(loaded):
    model = qllm_hf.quantize_(float_model("gemma3_text"), "KV8")
    groups = report(model).kv.groups
    assert [(group.layers, group.window) for group in groups] == [(2, 8), (1, None)]
    assert "last 8 tokens" in str(report(model))
    assert "last" not in str(report(loaded(kv=8)))


def test_latents_of_keys_only():
    model = float_model("deepseek_v3")
    (group,) = report(qllm_hf.quantize_(model, "KV4")).kv.groups
    # a latent of 32 becomes 8 words, 2 of the scale and 1 of the zero point; the rotary part of 8 stays float32
    assert (group.heads, group.key_dim, group.value_dim) == (1, 32, 8)
    assert group.bytes_per_token_after == 2 * (11 * 2 + 8 * 4)
    assert "keys only" in str(report(model))


def test_layers_without_keys_and_values_are_counted():
    result = report(float_model("jamba"))
    assert sum(group.layers for group in result.kv.groups) == 1
    assert result.kv.layers_without == 2
    assert "2 more layers cache no keys and values" in str(result)


def test_simulated_layers_save_nothing_and_say_so(monkeypatch):
    model = float_model("llama")
    assert kv_report(model, Scheme(kv=4)).groups[0].storage == "packed"
    monkeypatch.setattr(cache_layers, "PACKED_LAYERS", {})
    result = kv_report(model, Scheme(kv=4))
    assert result.groups[0].storage == "simulated"
    assert result.bytes_per_token_after == result.bytes_per_token_before


def test_an_architecture_that_cannot_be_asked_is_unknown_not_zero(monkeypatch):
    model = float_model("llama")

    def forward(self, *args, **kwargs):
        raise RuntimeError("needs values\nand more")

    monkeypatch.setattr(type(model), "forward", forward)
    result = report(model)
    assert result.kv.unknown == "the architecture does not run without weights (needs values)"
    assert result.to_dict()["kv_bytes_per_token"] is None
    assert "bytes per token unknown" in str(result)


def test_float_model_says_that_nothing_is_quantized(loaded):
    result = report(loaded())
    assert_adds_up(result)
    assert (result.scheme, result.quantized, result.bits_per_weight, result.backends) == ("FP16", (), None, ())
    assert result.linear_coverage == result.parameter_coverage == 0
    assert result.parameter_bytes_before == result.parameter_bytes_after
    assert "Quantized weights: none" in str(result)


def test_kv_only(loaded):
    result = report(loaded(kv=4))
    assert (result.scheme, result.quantized) == ("KV4", ())
    assert result.kv_bytes_per_token < result.kv_bytes_per_token_before


def test_overrides_on_float_weights(loaded):
    """Weights at 16 bits, but for those that an override names."""
    result = report(loaded(w=16, kv=8, overrides={"*.down_proj": "W8"}))
    assert_adds_up(result)
    assert [(group.bits, group.weights) for group in result.quantized] == [(8, 5)]


def test_what_stays_has_its_reason(loaded):
    with pytest.warns(QllmWarning, match=r"only 72\.8%"):
        result = report(loaded(w=4, modules_to_not_convert=["*.q_proj"], overrides={"layers.1": "FP16"}))
    kept = {group.pattern: (group.tensors, group.elements, group.reason) for group in result.kept}
    assert kept["model.layers.*.self_attn.q_proj"] == (5, 5 * 64 * 64, "kept by modules_to_not_convert")
    assert kept["model.layers.*.mlp.up_proj"] == (1, 172 * 64, "kept by an override")
    assert kept["lm_head"][:2] == (1, 512 * 64), "tied to the embedding: counted once"
    assert kept["of LlamaRMSNorm"] == (11, 11 * 64, "no linear weight")
    assert len(kept) == 9
    assert_adds_up(result)


def test_groups_by_bits_and_activations(loaded):
    result = report(loaded(w=4, a=8, overrides={"*.down_proj": "W8"}))
    found = {(group.bits, group.activation_bits): group.weights for group in result.quantized}
    assert found == {(4, 8): 30, (8, 16): 5}
    assert len(result.backends) == 2


def test_the_same_after_saving_and_loading(loaded, tmp_path):
    model = loaded(w=3, kv=4, overrides={"*.down_proj": "W8"})
    again = AutoModelForCausalLM.from_pretrained(save_model(model, None, tmp_path / "out"))
    assert report(again) == report(model)
    assert scheme_of(again) == "W3KV4"


def test_dequantized_model_is_a_float_model(loaded):
    model = loaded(w=4, kv=4).dequantize()
    assert report(model).scheme == "FP16"
    assert report(model).parameter_bytes_after == report(loaded()).parameter_bytes_after


def test_plan_needs_no_weights_and_changes_nothing(stories, loaded):
    shapes = model_on_meta(str(stories))
    names = [name for name, _ in shapes.named_parameters()]
    planned = plan_report(shapes, qllm_hf.QllmConfig(w=4, kv=4))
    assert [name for name, _ in shapes.named_parameters()] == names
    assert "planned" in str(planned).splitlines()[0]
    assert {**planned.to_dict(), "origin": "measured"} == report(loaded(w=4, kv=4)).to_dict()


def test_backends_are_those_that_run(loaded):
    model = loaded(w=4, a=8)
    (usual,) = report(model).backends
    assert usual.implementation not in dict(usual.refused)
    assert (usual.device, usual.dtype, usual.activation) == ("cpu", "float32", "8 bits")
    with prefer("integer"):
        (other,) = report(model).backends
    assert (other.implementation, other.refused) == ("integer", ())
    # those that come before the one that runs
    assert set(dict(usual.refused)) == {"cpu": set(), "dequantize": {"cpu", "integer"}}[usual.implementation]


def test_a_page_for_the_largest_models_is_no_wider(loaded):
    result = report(loaded(w=4, a=8, kv=4))
    million = 10**6
    quantized = tuple(
        replace(
            group,
            elements=group.elements * million,
            bytes_before=group.bytes_before * million,
            bytes_after=group.bytes_after * million,
        )
        for group in result.quantized
    )
    kept = tuple(
        replace(group, pattern=f"of {'Very' * 30}LongNorm", elements=group.elements * million) for group in result.kept
    )
    large = replace(result, elements=result.elements * million, quantized=quantized, kept=kept)
    assert "260,032,000,000" in str(large)
    assert max(len(line) for line in str(large).splitlines()) <= WIDTH


def test_models_of_other_libraries_are_refused(loaded):
    model = loaded()
    model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="gptq"))
    with pytest.raises(ModelError, match="'gptq'"):
        report(model)
