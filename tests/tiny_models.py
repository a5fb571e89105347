"""One tiny random model for each supported family, as a table."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 256
SHAPE = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,  # nothing ends early, so all generations have one length
}
# 88 is no multiple of the group size 32: the last group of such rows is short.
LLAMA = {
    **SHAPE,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {**SHAPE, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
HEADS = {"head_dim": 16}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 8}  # shorter than every prompt here
# What stays in floating point in every model; a family adds its own.
EMBEDDINGS = r"(lm_head|embed_out|head)|.*(embed_tokens|embed_positions|word_embeddings|wte|wpe|embed_in|embeddings?)"


@dataclass(frozen=True)
class Tiny:
    """A tiny model of one family.

    Attributes:
        options: of the config class of `model_type`.
        load: further arguments of from_pretrained and from_config.
        kept: pattern of the names of matrices, other than embeddings, that are right to stay in floating point.
        has_kv: whether keys and values exist.
        keys_only: whether only the first of the two cached tensors is quantized.
        length: tokens of a prompt.
        generate: arguments that generation needs to use a cache.
        reference: config values that hold for a packed model and change its results a little.
    """

    model_type: str
    options: Mapping[str, Any]
    load: Mapping[str, Any] = field(default_factory=dict)
    kept: str = r"$^"
    has_kv: bool = True
    keys_only: bool = False
    length: int = 20
    generate: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)


MODELS: dict[str, Tiny] = {
    "opt": Tiny("opt", {**LLAMA, "ffn_dim": 88, "word_embed_proj_dim": 64}),
    "llama": Tiny("llama", LLAMA),
    # llama weights with a chat template; the template is used in the test of a conversation
    "vicuna": Tiny("llama", {**LLAMA, "num_key_value_heads": 4}),
    # llama with positions divided by 8, and a prompt longer than the 64 tokens before that
    "longchat": Tiny(
        "llama",
        {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}},
        length=96,
    ),
    "falcon": Tiny("falcon", {**LLAMA, "multi_query": True, "new_decoder_architecture": False}),
    "falcon_new": Tiny("falcon", {**LLAMA, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "bloom": Tiny("bloom", {**SHAPE, "hidden_size": 64, "n_head": 4, "n_layer": 2}),
    "mistral": Tiny("mistral", {**LLAMA, **WINDOW}),
    "mixtral": Tiny("mixtral", {**LLAMA, **EXPERTS}, kept=r".*mlp\.gate"),
    "glm": Tiny("glm", {**LLAMA, **HEADS}),
    "glm4": Tiny("glm4", {**LLAMA, **HEADS}),
    "stablelm": Tiny("stablelm", LLAMA),
    "gemma": Tiny("gemma", {**LLAMA, **HEADS}),
    # transformers 5.17 chooses an attention that ignores the soft cap unless told otherwise
    "gemma2": Tiny("gemma2", {**LLAMA, **HEADS, **WINDOW}, load={"attn_implementation": "eager"}),
    "gemma3_text": Tiny(
        "gemma3_text",
        {
            **LLAMA,
            **HEADS,
            **WINDOW,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "mamba": Tiny(
        "mamba",
        {**SHAPE, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 16},
        kept=r".*(A_log|conv1d)",
        has_kv=False,
    ),
    "mamba2": Tiny(
        "mamba2",
        {
            **SHAPE,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
        kept=r".*conv1d",
        has_kv=False,
    ),
    "jamba": Tiny(
        "jamba",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 16,
            "use_mamba_kernels": False,
        },
        kept=r".*(A_log|conv1d|router)",
        # transformers then calls dt_proj, whose input is rounded, instead of multiplying by its weight
        reference={"_is_quantized": True},
    ),
    "rwkv": Tiny(
        "rwkv",
        {
            **SHAPE,
            "hidden_size": 64,
            "attention_hidden_size": 64,
            "intermediate_size": 88,
            "num_hidden_layers": 4,
            "rescale_every": 2,
        },
        kept=r".*time_mix_\w+",
        has_kv=False,
        reference={"rescale_every": 0},
    ),
    "falcon_h1": Tiny(
        "falcon_h1",
        {
            **LLAMA,
            **HEADS,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
        kept=r".*conv1d",
    ),
    "qwen2": Tiny("qwen2", LLAMA),
    "qwen3": Tiny("qwen3", {**LLAMA, **HEADS}),
    "qwen3_moe": Tiny(
        "qwen3_moe",
        {**LLAMA, **HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
        kept=r".*mlp\.gate",
    ),
    "phi": Tiny("phi", LLAMA),
    "phi3": Tiny("phi3", LLAMA),
    "gpt2": Tiny("gpt2", GPT2),
    "gpt_neox": Tiny("gpt_neox", LLAMA),
    "gptj": Tiny("gptj", {**GPT2, "rotary_dim": 8}),
    # its config says use_cache=False
    "mpt": Tiny(
        "mpt",
        {**SHAPE, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
        generate={"use_cache": True},
    ),
    "gpt_oss": Tiny("gpt_oss", {**LLAMA, **HEADS, **WINDOW, **EXPERTS}, kept=r".*(router|_bias)"),
    "deepseek_v3": Tiny(
        "deepseek_v3",
        {
            **LLAMA,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "kv_lora_rank": 32,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
        kept=r".*mlp\.gate",
        keys_only=True,
    ),
}


def tiny_config(name: str) -> PreTrainedConfig:
    """The family's config."""
    tiny = MODELS[name]
    return CONFIG_MAPPING[tiny.model_type](**copy.deepcopy(dict(tiny.options)))


def float_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The family's model with seeded random float32 weights, large enough for its logits to say something."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32, **MODELS[name].load).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):  # all zero by default, so a lost one would go unnoticed
                parameter.normal_(std=0.05)
            elif parameter.ndim >= 2 and not parameter_name.endswith("A_log"):
                parameter.mul_(4)
    return model


def prompt(name: str, batch: int = 2, seed: int = 1) -> Tensor:
    """Token ids [batch, tokens] that exceed each sliding window; the second half repeats parts of the first."""
    length = MODELS[name].length
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    ids[:, -4:] = ids[:, 4:8]  # for prompt lookup to find something
    return ids


def is_kept_by_right(name: str, parameter_name: str) -> bool:
    """Whether a float matrix of that name is meant to stay in floating point in this family."""
    module = re.sub(r"\.weight$", "", parameter_name)
    return bool(re.fullmatch(EMBEDDINGS, module) or re.fullmatch(MODELS[name].kept, module))


def on_one_thread() -> Iterator[None]:
    """For a fixture: matrices this small are computed faster without help from other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }} {% else %}ASSISTANT:{{ message['content'] }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with vicuna's chat template. A token is a character, so text and tokens convert freely."""
    characters = {chr(code if 32 <= code < 127 else 0x4E00 + code): code for code in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2} | characters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT_TEMPLATE
    )
