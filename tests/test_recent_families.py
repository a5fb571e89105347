"""Architectures beyond the named families: nothing in the package knows them, and they must work all the same.

Each is loaded nowhere by name in `families.py` or only for a note. A family that a release of transformers does not
have is left out on it.
"""

import copy

import pytest
import torch
from tiny_models import GPT2, LLAMA, SHAPE
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from qllm_hf import QllmConfig, QllmWarning, quantize_
from qllm_hf.cache import describe_cache
from qllm_hf.hooks import detach_kv

BASE = {**LLAMA, "num_hidden_layers": 3, "intermediate_size": 64}
HEAD = {**BASE, "head_dim": 16}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_hidden_layers": 4,
}
SSM = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
TOP2 = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}

# model_type -> (options, layers with keys and values)
RECENT = {
    "bamba": ({**BASE, **SSM, "attn_layer_indices": [1]}, 1),
    "codegen": ({**GPT2, "n_layer": 3, "rotary_dim": 8}, 3),
    "cohere2": ({**BASE, "sliding_window": 8}, 3),
    "deepseek_v2": (
        {**BASE, **TOP2, **LATENT, "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1,
         "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "topk_method": "greedy"},
        3,
    ),
    "ernie4_5": (HEAD, 3),
    "exaone4": ({**BASE, "sliding_window": 8}, 3),
    "gemma4_text": ({**HEAD, "sliding_window": 8}, 3),
    "glm4_moe": (
        {**HEAD, **TOP2, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
         "first_k_dense_replace": 1},
        3,
    ),
    "gpt_bigcode": ({**GPT2, "n_layer": 3}, 3),
    "gpt_neo": (
        {**SHAPE, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
         "window_size": 8},
        2,
    ),
    "granitemoehybrid": (
        {**BASE, **SSM, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64,
         "layer_types": ["mamba", "attention", "mamba"]},
        1,
    ),
    "lfm2": ({**BASE, "num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}, 2),
    "minimax_m2": ({**HEAD, "num_local_experts": 4, "num_experts_per_tok": 2}, 3),
    "olmo3": ({**BASE, "sliding_window": 8}, 3),
    "olmoe": ({**BASE, "num_experts": 4, "num_experts_per_tok": 2}, 3),
    "qwen3_next": (
        {**HEAD, **DELTA, **TOP2, "num_experts": 4, "shared_expert_intermediate_size": 32},
        1,
    ),
    "seed_oss": (HEAD, 3),
    "smollm3": (BASE, 3),
    "starcoder2": (BASE, 3),
}  # fmt: skip


def recent_model(model_type):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**copy.deepcopy(RECENT[model_type][0]))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not name.endswith("A_log"):
                parameter.mul_(4)
    return model


@pytest.mark.parametrize("model_type", RECENT)
@torch.no_grad()
def test_weights_and_cache_are_quantized_and_consistent(model_type):
    model = quantize_(recent_model(model_type), "W4KV4", w_group_size=32)
    assert model.hf_quantizer.plan.coverage() > 0.995
    ids = torch.randint(3, 200, (2, 12))
    scored = model(ids, use_cache=False).logits
    torch.testing.assert_close(model(ids).logits, scored, rtol=0, atol=1e-5)

    written = model.generate(ids, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    assert describe_cache(written.past_key_values)["packed"] == RECENT[model_type][1]
    again = model(written.sequences, use_cache=False).logits
    for step, logits in enumerate(written.logits):
        torch.testing.assert_close(logits, again[:, 11 + step], rtol=0, atol=1e-4)

    detach_kv(model)  # the negative control: it was KV quantization that acted in the forward without a cache
    assert (model(ids, use_cache=False).logits - scored).abs().max() > 1e-3


def test_weights_that_layers_share_are_named(tmp_path):
    """Zamba ties whole blocks: they stay in floating point, with a warning, and the model loads and saves."""
    options = {
        **BASE,
        "num_hidden_layers": 4,
        "mamba_d_state": 16,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_mem_blocks": 1,
        "use_mem_rope": False,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["zamba2"](**options), dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "float")
    config = QllmConfig(w=4, kv=4, w_group_size=32)
    with pytest.warns(QllmWarning, match=r"shared_transformer.*shared by several layers"):
        packed = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
    ids = torch.randint(3, 200, (2, 12))
    scored = packed(ids, use_cache=False).logits
    torch.testing.assert_close(packed(ids).logits, scored, rtol=0, atol=1e-5)
    packed.save_pretrained(tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    torch.testing.assert_close(again(ids, use_cache=False).logits, scored, rtol=0, atol=0)


def test_experts_of_an_unknown_form_are_named():
    options = {**HEAD, "num_local_experts": 4, "intermediate_size_mlp": 64}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama4_text"](**options), dtype=torch.float32)
    with pytest.warns(
        QllmWarning, match=r"only .*%.*feed_forward\.experts \(fused experts of a form that is not known"
    ):
        quantize_(model, "W4", w_group_size=32)
