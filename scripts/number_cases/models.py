"""Whole models: prompts and steps with every kind of cache, against the same packed model in float64.

In float64 all of it is plain torch: no kernel takes that type. Codes of activations, keys and values are chosen anew
there, and next to a tie another one may be chosen, so what is compared is the norm of the logits of a sequence. How far
a half precision may take a model whose weights have outliers is not known beforehand: where it is further than usual,
plain torch in the same precision has to be about as far.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tiny_models import float_model, prompt
from torch import Tensor
from transformers import DynamicCache, StaticCache

from qllm_hf import quantize_
from qllm_hf.ops import prefer

from .outcome import Outcome

FAMILIES = ("llama", "gpt2", "mistral", "qwen3", "opt", "mixtral", "gpt_neox")
SCHEMES = ("W4", "W8", "W3", "W8A8", "W4A8", "KV8", "KV6", "W4KV8", "W8A8KV8", "W6A8KV7")
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 2e-2}
WITHOUT_KERNELS = 3
"""How much further than plain torch in the same precision."""
ANOTHER_CODE = 0.1
"""What one code of activations, keys or values that is rounded the other way may do, with an outlier in a weight."""


def _outlier(matrix: Tensor) -> None:
    matrix[0, 1] = 500 * matrix.abs().max()


def _equal(matrix: Tensor) -> None:
    matrix[1:4] = matrix[1, 0]


def _zero(matrix: Tensor) -> None:
    matrix[:3] = 0.0
    matrix[:, :5] *= 0.0


DAMAGE: dict[str, Callable[[Tensor], None]] = {
    "none": lambda matrix: None,
    "an outlier": _outlier,
    "equal rows": _equal,
    "zeros": _zero,
}
CACHES: dict[str, Callable[[Any], Any]] = {
    "none": lambda model: None,
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=40),
}


def model(source: random.Random) -> Iterator[Outcome]:
    """Logits of a prompt and of some steps after it, in some cases with a NaN, or nothing but padding, in a row."""
    family, scheme, kind = source.choice(FAMILIES), source.choice(SCHEMES), source.choice(list(CACHES))
    # scales of activations, keys and values are rounded to 16 bits, which float64 does not do; and a router chooses
    # experts, where half precision makes many ties
    chooses = "A" in scheme or "KV" in scheme
    dtype = torch.float32 if chooses or family == "mixtral" else source.choice(list(ALLOWED))
    if family == "mixtral" and not scheme.startswith("W"):
        scheme = "W8" + scheme  # experts that stay in floating point take no float64
    made = float_model(family, seed=source.randrange(100)).to(dtype)
    change = DAMAGE[source.choice(list(DAMAGE))]
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 2 and "emb" not in name and "lm_head" not in name and source.random() < 0.3:
                change(parameter)
    packed = quantize_(made, scheme, w_group_size=source.choice((32, 64, -1)))
    ids, steps = prompt(family, batch=3, seed=source.randrange(100))[:, : source.choice((1, 2, 9, 20))], 3
    spoiled = source.random() < 0.3
    mask = torch.ones(3, ids.shape[1] + steps, dtype=torch.long)
    if source.random() < 0.3:
        mask[0, : ids.shape[1]] = 0  # nothing but padding
    found = _logits(packed, ids, mask, steps, CACHES[kind](packed), spoiled)
    reference = copy.deepcopy(packed).double()
    wanted = _logits(reference, ids, mask, steps, CACHES[kind](reference), spoiled)
    name = f"{kind} cache"
    if spoiled and bool(found[1].isfinite().any()):
        yield Outcome(name, 0, 0, f"{family} {scheme}: a sequence with a NaN has finite logits")
    for row in (0, 2) if spoiled else (0, 1, 2):
        if not bool(wanted[row].isfinite().all()):
            continue
        off = float((found[row].double() - wanted[row]).norm() / wanted[row].norm())
        allowed = ANOTHER_CODE if chooses else ALLOWED[dtype]
        if off > allowed and dtype != torch.float32:
            with prefer("dequantize"):
                plain = _logits(packed, ids, mask, steps, CACHES[kind](packed), spoiled)
            allowed = max(
                allowed, WITHOUT_KERNELS * float((plain[row].double() - wanted[row]).norm() / wanted[row].norm())
            )
        share = off / allowed
        fault = "" if share <= 1 else f"{family} {scheme} in {dtype}: logits are off by {off:.3g} of their norm"
        yield Outcome(name, share, off, fault)


@torch.no_grad()
def _logits(model: Any, ids: Tensor, mask: Tensor, steps: int, cache: Any, spoiled: bool) -> Tensor:
    """Of the last token of the prompt and of `steps` more: [B, steps + 1, V]."""
    ids = torch.cat([ids, ids[:, :1].expand(-1, steps)], -1)
    hidden = model.get_input_embeddings()(ids)
    if spoiled:
        hidden = hidden.clone()
        hidden[1, 0, 3] = float("nan")
    begin = ids.shape[1] - steps
    if cache is None:
        result: Tensor = model(inputs_embeds=hidden, attention_mask=mask, use_cache=False).logits[:, begin - 1 :]
        return result
    found = [model(inputs_embeds=hidden[:, :begin], attention_mask=mask[:, :begin], past_key_values=cache).logits]
    for end in range(begin + 1, ids.shape[1] + 1):
        step = hidden[:, end - 1 : end]
        found.append(model(inputs_embeds=step, attention_mask=mask[:, :end], past_key_values=cache).logits)
    return torch.cat([found[0][:, -1:], *found[1:]], 1)
