"""What is checked for each family, shared by the tests and by `benchmarks/families_table.py`."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from simulated_models import rounded_kv, simulated_model
from tiny_models import MODELS, float_model, is_kept_by_right, prompt
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel, StaticCache

from qllm_hf import QllmConfig, QllmWarning, Scheme, quantize_
from qllm_hf.cache import describe_cache
from qllm_hf.hooks import detach_kv
from qllm_hf.nn import PackedModule

SCHEMES = ("W4", "W4A8", "KV4", "W4KV8", "W3KV3", "W8A8KV8")
GENERATION_SCHEME = "W4KV4"
GROUP_SIZE = 32
SHARD = "60KB"  # several files for every model
NEW_TOKENS = 6
NO_KV = "has no keys and values"


@dataclass(frozen=True)
class SchemeResult:
    """Differences are the largest absolute ones between logits in float32.

    Attributes:
        coverage: share of the linear weights that the plan quantizes.
        uncovered: float matrices of the packed model that nobody said may stay in floating point.
        difference: packed against simulated, with and without a cache, the larger one.
        in_memory: `quantize_` of the float model against loading its checkpoint.
        reload: saved in several files and read again.
        dequantized: `dequantize()` against the float model with rounded weights.
        kv_effect: the same model without KV quantization; what must not be 0.
        unknown_keys: missing or unexpected names in either load.
        files: number of safetensors files that the packed model was saved in.
        says_no_kv: a warning said that KV bits have no effect.
        largest: the largest absolute logit.
    """

    coverage: float
    uncovered: tuple[str, ...]
    difference: float
    in_memory: float
    reload: float
    dequantized: float
    kv_effect: float
    unknown_keys: tuple[str, ...]
    files: int
    says_no_kv: bool
    largest: float


def parse(scheme: str) -> Scheme:
    """The scheme with the group size that tiny matrices need."""
    return QllmConfig.from_scheme(scheme, w_group_size=GROUP_SIZE).scheme


def save_float(name: str, folder: Path) -> Path:
    """The checkpoint of the family's float model, written once."""
    path = folder / name
    if not path.exists():
        float_model(name).save_pretrained(path)
    return path


def load(name: str, path: Path, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model in float32, and what its loading report complains about."""
    model, report = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, **MODELS[name].load, **options
    )
    return model.eval(), [f"{kind}: {key}" for kind, keys in report.items() for key in keys]


@torch.no_grad()
def check_scheme(name: str, scheme: str, folder: Path) -> SchemeResult:
    """Everything about one family under one scheme, from a saved float checkpoint on."""
    parsed, ids = parse(scheme), prompt(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", QllmWarning)
        packed, complaints = load(name, save_float(name, folder), quantization_config=_config(scheme))
        in_memory = quantize_(float_model(name), _config(scheme))
        saved = folder / f"{name}-{scheme}"
        packed.save_pretrained(saved, max_shard_size=SHARD)
        reloaded, more = load(name, saved)
    without_cache = packed(ids, use_cache=False).logits
    with_cache = packed(ids, use_cache=True).logits

    simulated = simulated_model(name, parsed)
    with rounded_kv(name, parsed):
        reference = simulated(ids, use_cache=True).logits
    weights_only = simulated_model(name, Scheme(w=parsed.w, w_group_size=GROUP_SIZE))

    float_kv = copy.deepcopy(packed)
    detach_kv(float_kv)
    return SchemeResult(
        coverage=packed.hf_quantizer.plan.coverage(),
        uncovered=uncovered(name, packed) if parsed.weight is not None else (),
        difference=max(distance(without_cache, reference), distance(with_cache, reference)),
        in_memory=distance(in_memory(ids, use_cache=False).logits, without_cache),
        reload=distance(reloaded(ids, use_cache=False).logits, without_cache),
        dequantized=distance(
            reloaded.dequantize()(ids, use_cache=False).logits, weights_only(ids, use_cache=False).logits
        ),
        kv_effect=distance(float_kv(ids, use_cache=False).logits, without_cache),
        unknown_keys=tuple(complaints + more),
        files=len(list(saved.glob("*.safetensors"))),
        says_no_kv=any(NO_KV in str(warning.message) for warning in caught),
        largest=float(without_cache.abs().max()),
    )


def distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite if either holds something that is no number."""
    difference = (a - b).abs().max().item()
    return difference if difference == difference else float("inf")


def uncovered(name: str, packed: PreTrainedModel) -> tuple[str, ...]:
    """Float matrices of a packed model that are neither embeddings nor in the family's `kept`.

    Goes by shapes and not by the plan: what the plan overlooks is found here.
    """
    ours = {
        f"{module_name}.{part}"
        for module_name, module in packed.named_modules()
        if isinstance(module, PackedModule)
        for part in module.packed_names()
    }
    return tuple(
        parameter_name
        for parameter_name, parameter in packed.named_parameters()
        if parameter.ndim >= 2 and parameter_name not in ours and not is_kept_by_right(name, parameter_name)
    )


def _config(scheme: str) -> QllmConfig:
    return QllmConfig.from_scheme(scheme, w_group_size=GROUP_SIZE)


def packed_and_simulated(name: str, scheme: str = GENERATION_SCHEME) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The two models whose generations must be the same (the second one within `rounded_kv`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QllmWarning)
        packed = quantize_(float_model(name), _config(scheme))
    return packed, simulated_model(name, parse(scheme))


Mode = Callable[[PreTrainedModel, str], Tensor]


def generate(model: PreTrainedModel, name: str, ids: Tensor | None = None, **options: Any) -> Any:
    """`model.generate` with the settings that all modes share."""
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, **MODELS[name].generate, **options}
    torch.manual_seed(7)
    return model.generate(prompt(name) if ids is None else ids, **settings)


def _assisted(model: PreTrainedModel, name: str) -> Tensor:
    # the unrounded model guesses well, but not always right: accepted and refused tokens both occur
    return generate(model, name, prompt(name)[:1], assistant_model=float_model(name), num_assistant_tokens=4)


def _continued(model: PreTrainedModel, name: str) -> Tensor:
    first = generate(model, name, max_new_tokens=4, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, prompt(name, seed=2)[:, :6]], -1)  # what the user answers
    return generate(model, name, ids, past_key_values=first.past_key_values)


def _left_padded(model: PreTrainedModel, name: str) -> Tensor:
    ids = prompt(name)
    mask = torch.ones_like(ids)
    ids[0, :6], mask[0, :6] = 0, 0
    return generate(model, name, ids, attention_mask=mask)


def _user_static(model: PreTrainedModel, name: str) -> Tensor:
    cache = StaticCache(config=model.config, max_cache_len=MODELS[name].length + 2 * NEW_TOKENS)
    return generate(model, name, past_key_values=cache)


MODES: dict[str, Mode] = {
    "greedy": generate,
    "beam search": lambda model, name: generate(model, name, num_beams=3, num_return_sequences=2),
    "sampling": lambda model, name: generate(model, name, do_sample=True, num_return_sequences=3),
    "prompt lookup": lambda model, name: generate(model, name, prompt(name)[:1], prompt_lookup_num_tokens=3),
    "assisted": _assisted,
    "chunked prefill": lambda model, name: generate(model, name, prefill_chunk_size=5),
    "continued": _continued,
    "left padding": _left_padded,
    "static cache": lambda model, name: generate(model, name, cache_implementation="static"),
    "own DynamicCache": lambda model, name: generate(model, name, past_key_values=DynamicCache(config=model.config)),
    "own StaticCache": _user_static,
    "without cache": lambda model, name: generate(model, name, use_cache=False),
}

_STATES = "its states cannot be taken back to an earlier token"
_NO_CACHE = "it keeps states of its own and takes no cache"
_SSM = {
    "prompt lookup": _STATES,
    "assisted": _STATES,
    "chunked prefill": _NO_CACHE,
    "continued": _NO_CACHE,
    "own DynamicCache": _NO_CACHE,
    "own StaticCache": _NO_CACHE,
}
# family -> mode -> why transformers refuses it for any model of the family, quantized or not.
REFUSED: dict[str, dict[str, str]] = {
    "mamba": _SSM,
    "mamba2": _SSM,
    "rwkv": {
        "beam search": "its states cannot be reordered",
        "prompt lookup": _STATES,
        "assisted": _STATES,
        "chunked prefill": _NO_CACHE,
        "continued": _NO_CACHE,
    },
    "jamba": {"prompt lookup": _STATES, "assisted": _STATES},
    "falcon_h1": {"prompt lookup": _STATES, "assisted": _STATES},
}
# family -> the lowest coverage that is right, and why it is not 1.
COVERAGE: dict[str, tuple[float, str]] = {
    "jamba": (0.99, "its routers are linear layers before transformers 5.21, and stay in floating point"),
}
# (family, mode) -> what transformers does there that one may not expect; quantized models do the same.
REMARKS: dict[tuple[str, str], str] = {
    (
        "jamba",
        "chunked prefill",
    ): "a defect of transformers: the float model, too, goes on differently than without chunks",
    **{
        ("mpt", mode): "only with use_cache=True, which is not its default" for mode in MODES if mode != "without cache"
    },
    **{
        ("rwkv", mode): "the cache is ignored: the family keeps states of its own"
        for mode in ("static cache", "own DynamicCache", "own StaticCache")
    },
}


def run_mode(mode: str, model: PreTrainedModel, name: str) -> Tensor | str:
    """The tokens that come out, or the error that transformers raises."""
    try:
        return MODES[mode](model, name)
    except Exception as error:  # whatever it is, the other model must raise the same
        return f"{type(error).__name__}: {error}"


@torch.no_grad()
def check_mode(name: str, mode: str, packed: PreTrainedModel, simulated: PreTrainedModel) -> str:
    """ "same" tokens from both models, "refused: ..." by both with one error, or what is different."""
    ours = run_mode(mode, packed, name)
    # without a cache nothing rounds K and V of a float model: compare with its cached run
    reference_mode = "greedy" if mode == "without cache" and MODELS[name].has_kv else mode
    with rounded_kv(name, parse(GENERATION_SCHEME)):
        reference = run_mode(reference_mode, simulated, name)
    if isinstance(ours, str) or isinstance(reference, str):
        return f"refused: {ours}" if ours == reference else f"differs: {_short(ours)} | {_short(reference)}"
    return "same" if torch.equal(ours, reference) else f"differs: {ours.tolist()} | {reference.tolist()}"


def _short(result: Tensor | str) -> str:
    return result if isinstance(result, str) else "no error"


def held_layers(name: str, packed: PreTrainedModel) -> dict[str, int]:
    """How the cache that generation returns holds its layers; empty without a cache."""
    result = generate(packed, name, max_new_tokens=1, return_dict_in_generate=True)
    cache = result.get("past_key_values")
    return describe_cache(cache) if isinstance(cache, Cache) else {}
