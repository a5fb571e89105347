"""What each family of models keeps in floating point, and why: tables, no code per family.

A rule that holds for every model stands once at the top. `FAMILIES` holds what cannot be inferred from
the modules themselves, by `config.model_type`. Patterns are matched against full module names with
`qllm_hf.patterns`, so `dt_proj` is any module of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

ROUTERS = ("gate", "router", "shared_expert_gate")
ROUTER_REASON = "router: tiny, and a flipped choice of experts costs far more than the bits saved"
HEAD_REASON = "output head or tied to the embedding: outside the decoder blocks, kept as in the study"
USER_REASON = "kept by modules_to_not_convert"
OVERRIDE_REASON = "kept by an override"
FP32_REASON = "the model asks to keep it in float32"
SHARED_REASON = "one weight shared by several layers, which packed weights do not support"
UNKNOWN_EXPERTS_REASON = "fused experts of a form that is not known"
OWN_FORWARD_REASON = "a Linear subclass with a forward of its own that is not known to be a plain product"

# Linear subclasses whose forward is input @ weight.T + bias, written differently.
PLAIN_LINEAR_SUBCLASSES = frozenset({"FalconLinear", "NonDynamicallyQuantizableLinear"})
# Names of output heads in code that does not say get_output_embeddings: of language models, and of all models.
LM_HEAD_NAMES = ("lm_head", "output_layer", "embed_out", "output_projection")
HEAD_NAMES = (*LM_HEAD_NAMES, "score", "classifier", "qa_outputs")

# Names of layers within one module that read the same input, the one that is called first in front.
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"), ("w1", "w3"))

KeptStates = Literal["kv", "keys", "none"]

LATENT_NOTE = (
    "multi-head latent attention caches a latent and a rotary key part instead of keys and values: "
    "the latent is quantized, the small rotary part stays in floating point"
)
SSM_NOTE = "states of the state-space layers stay in floating point: they are constant in size and rewritten every step"
NO_KV_NOTE = (
    "no keys and values exist in this architecture: KV bits have nothing to act on, its states stay floating point"
)
DT_NOTE = "dt_proj: the mixer multiplies by the matrix itself, so its input is not quantized even with A bits"


@dataclass(frozen=True)
class Family:
    """What to know about one `model_type`.

    Attributes:
        keep: pattern of module names -> why they stay in floating point.
        kv: "kv" quantizes keys and values, "keys" only the first of the two cached tensors; "none": no KV exists.
        notes: sentences for the report, on what the user may not expect.
        config_updates: attribute of the model's config -> value that packed weights need.
    """

    keep: Mapping[str, str] = field(default_factory=dict)
    kv: KeptStates = "kv"
    notes: tuple[str, ...] = ()
    config_updates: Mapping[str, Any] = field(default_factory=dict)


_LATENT = Family(kv="keys", notes=(LATENT_NOTE,))
_SSM_ONLY = Family(kv="none", notes=(NO_KV_NOTE, DT_NOTE))
_HYBRID = Family(notes=(SSM_NOTE,))

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "mamba": _SSM_ONLY,
        "falcon_mamba": _SSM_ONLY,
        "mamba2": Family(kv="none", notes=(NO_KV_NOTE,)),
        "rwkv": Family(
            kv="none",
            notes=(
                NO_KV_NOTE,
                "rescale_every is set to 0: RWKV halves weights in place against float16 overflow, which packed "
                "weights cannot follow; use bfloat16 or float32",
            ),
            config_updates={"rescale_every": 0},
        ),
        "jamba": Family(notes=(SSM_NOTE, DT_NOTE)),
        "falcon_h1": _HYBRID,
        "bamba": _HYBRID,
        "zamba": _HYBRID,
        "zamba2": _HYBRID,
        "granitemoehybrid": _HYBRID,
        "nemotron_h": _HYBRID,
        "qwen3_next": _HYBRID,
        "lfm2": _HYBRID,
        **dict.fromkeys(
            (
                "axk1",
                "bailing_hybrid",
                "deepseek_v2",
                "deepseek_v3",
                "deepseek_v32",
                "glm4_moe_lite",
                "glm_moe_dsa",
                "kimi_linear",
                "longcat_flash",
                "minicpm3",
                "mistral4",
                "youtu",
            ),
            _LATENT,
        ),
    }
)

# Remote-code architectures that do not run on transformers 5, and the native way to the same model.
REPLACED_REMOTE_CODE: Mapping[str, str] = MappingProxyType(
    {
        "chatglm": (
            "ChatGLM checkpoints carry their own code written for transformers 4, which transformers 5 cannot run. "
            "Use the native conversion of the same family (model_type 'glm' or 'glm4', for example a GLM-4 '-hf' "
            "repository); it loads without remote code and is fully supported."
        ),
    }
)


def family(model_type: str | None) -> Family:
    """What is known about a `model_type`; an empty Family where nothing special is."""
    return FAMILIES.get(model_type or "", Family())
