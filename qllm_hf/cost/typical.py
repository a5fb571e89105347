"""A model of a given size, where no model is named: the shapes of a known one, with more or fewer layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import ConfigError

LARGEST_B: Final = 1500
"""Billions of parameters beyond which a size is taken for a slip of the pen."""


class Typical(NamedTuple):
    """A model of typical shapes on the meta device, and the sentence that says what was assumed."""

    model: PreTrainedModel
    sentence: str


@dataclass(frozen=True)
class Shape:
    """The shapes of a known model.

    Attributes:
        name: of the model.
        params_b: billions of parameters.
        model_type, options: of its config.
        source: where they are published.
        moe: whether it is a mixture of experts.
    """

    name: str
    params_b: float
    model_type: str
    options: Mapping[str, Any]
    source: str
    moe: bool = False


def _decoder(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


def _opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    width = {"hidden_size": hidden, "word_embed_proj_dim": hidden, "ffn_dim": 4 * hidden}
    return {**width, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 50272}


def _opt_shape(name: str, params_b: float, *sizes: int) -> Shape:
    return Shape(name, params_b, "opt", _opt(*sizes), "config.json of facebook/" + name.lower())


def _llama_shape(name: str, params_b: float, source: str, *sizes: int) -> Shape:
    return Shape(name, params_b, "llama", _decoder(*sizes), "config.json of " + source)


# The models of the study where it has one of that size; OLMoE, Llama 3.1 and DeepSeek-V3 reach sizes it has not.
SHAPES: Final = (
    _opt_shape("OPT-125M", 0.125, 768, 12, 12),
    _opt_shape("OPT-1.3B", 1.3, 2048, 24, 32),
    _llama_shape("StableLM-3B", 2.8, "stabilityai/stablelm-zephyr-3b", 2560, 6912, 32, 32, 32, 50304),
    _llama_shape("LLaMA2-7B", 6.7, "meta-llama/Llama-2-7b-hf", 4096, 11008, 32, 32, 32, 32000),
    _llama_shape("LLaMA2-13B", 13.0, "meta-llama/Llama-2-13b-hf", 5120, 13824, 40, 40, 40, 32000),
    _llama_shape("Vicuna-33B", 32.5, "lmsys/vicuna-33b-v1.3", 6656, 17920, 60, 52, 52, 32000),
    _llama_shape("LLaMA2-70B", 69.0, "meta-llama/Llama-2-70b-hf", 8192, 28672, 80, 64, 8, 32000),
    Shape(
        "Falcon-180B",
        179.5,
        "falcon",
        {
            "hidden_size": 14848,
            "num_hidden_layers": 80,
            "num_attention_heads": 232,
            "num_kv_heads": 8,
            "vocab_size": 65024,
            "new_decoder_architecture": True,
            "bias": False,
        },
        "config.json of tiiuae/falcon-180B",
    ),
    _llama_shape("Llama-3.1-405B", 406.0, "meta-llama/Llama-3.1-405B", 16384, 53248, 126, 128, 8, 128256),
    Shape(
        "OLMoE-1B-7B",
        6.9,
        "olmoe",
        {**_decoder(2048, 1024, 16, 16, 16, 50304), "num_experts": 64, "num_experts_per_tok": 8},
        "config.json of allenai/OLMoE-1B-7B-0924",
        moe=True,
    ),
    Shape(
        "Mixtral-8x7B",
        46.7,
        "mixtral",
        {**_decoder(4096, 14336, 32, 32, 8, 32000), "num_local_experts": 8, "num_experts_per_tok": 2},
        "config.json of mistralai/Mixtral-8x7B-Instruct-v0.1",
        moe=True,
    ),
    Shape(
        "Mixtral-8x22B",
        140.6,
        "mixtral",
        {**_decoder(6144, 16384, 56, 48, 8, 32768), "num_local_experts": 8, "num_experts_per_tok": 2},
        "config.json of mistralai/Mixtral-8x22B-Instruct-v0.1",
        moe=True,
    ),
    Shape(
        "DeepSeek-V3",
        671.0,
        "deepseek_v3",
        {
            **_decoder(7168, 18432, 61, 128, 128, 129280),
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "topk_group": 4,
            "first_k_dense_replace": 3,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
        },
        "config.json of deepseek-ai/DeepSeek-V3",
        moe=True,
    ),
)


def typical_model(params_b: float, moe: bool = False) -> Typical:
    """A model of about `params_b` billion parameters in float16, without weights, and the sentence of the assumption.

    It has the layers of the known model nearest in size, as many as bring the number of parameters closest. Models of
    one size differ in what they cache (grouped heads, windows, latents): name the model where there is one.

    Raises:
        ConfigError: the size is no positive number, or none that a model of this kind has.
    """
    shapes = [shape for shape in SHAPES if shape.moe == moe]
    kind = "a mixture of experts" if moe else "a dense model"
    if isinstance(params_b, bool) or not isinstance(params_b, int | float) or not 0 < params_b <= LARGEST_B:
        raise ConfigError(
            f"params_b={params_b!r}: give the number of parameters in billions, such as 7 or 0.5; at most {LARGEST_B}."
        )
    shape = min(shapes, key=lambda each: abs(math.log(each.params_b / params_b)))
    full = shape.options["num_hidden_layers"]
    # Two models that differ in their last layer say what a layer takes; the rest is there without any.
    total, less = _params(shape, full), _params(shape, full - 1)
    layers = round(full + (params_b * 1e9 - total) / (total - less))
    if layers < 1 + shape.options.get("first_k_dense_replace", 0):
        raise ConfigError(
            f"params_b={params_b!r} is too small for {kind}: give at least {_params(shape, 1) / 1e9:.2g}, "
            "or the model itself."
        )
    model = _on_meta(shape, layers)
    count = _count(model) / 1e9
    as_it_is = f"its {full} layers" if layers == full else f"{layers} of its layers in place of {full}"
    sentence = (
        f"No model was named: {kind} of {params_b:g} billion parameters is taken to have the shapes of {shape.name}, "
        f"with {as_it_is} ({count:.3g} billion parameters)."
    )
    return Typical(model, sentence)


def _params(shape: Shape, layers: int) -> int:
    return _count(_on_meta(shape, layers))


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _on_meta(shape: Shape, layers: int) -> PreTrainedModel:
    options = {**copy.deepcopy(dict(shape.options)), "num_hidden_layers": layers}
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING[shape.model_type](**options), dtype=torch.float16)
    shapes: PreTrainedModel = model.eval()
    return shapes
