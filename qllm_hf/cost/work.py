"""What a token makes a model read and multiply, from the plan: experts, looked-up rows and the head apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..plan import Entry, Plan
from ..scheme import PER_TENSOR

_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")
"""How configs call the number of experts that a token goes to."""
_INTEGER_BITS = 8
"""Inputs of at most so many bits are multiplied as 8-bit integers."""


@dataclass(frozen=True)
class Work:
    """Weights by what they do. Products are multiply-adds of one token; an expert counts where a token goes to it.

    Attributes:
        expert_elements, expert_bytes: of all experts together.
        experts: in each layer that has some; 0 in a dense model.
        experts_per_token: of them, for one token.
        lookup_bytes: of embeddings whose rows are only looked up, also because the head has a packed form of its own.
        head_products: of the output head.
        float_products: of everything else with inputs in floating point.
        integer_products: of everything else with inputs of at most 8 bits.
    """

    expert_elements: int
    expert_bytes: int
    experts: int
    experts_per_token: int
    lookup_bytes: int
    head_products: int
    float_products: int
    integer_products: int

    @property
    def idle_elements(self) -> int:
        """Elements of experts that a token does not go to."""
        if not self.experts:
            return 0
        return self.expert_elements * (self.experts - self.experts_per_token) // self.experts


def work_of(model: PreTrainedModel, plan: Plan) -> Work:
    """The work of a float model on the meta device under a plan.

    A config that does not say how many experts a token goes to counts as going to all of them.
    """
    itemsize = model.dtype.itemsize
    expert_entries = [entry for entry in plan.entries if entry.kind == "experts"]
    experts = max((entry.shape[0] for entry in expert_entries), default=0)
    chosen = _per_token(model, experts)
    head = _head_elements(model, plan)
    float_products = integer_products = 0
    for entry in plan.entries:
        if entry.is_head:
            continue
        products = entry.elements * chosen // experts if entry.kind == "experts" else entry.elements
        if entry.activation is not None and entry.activation.bits <= _INTEGER_BITS:
            integer_products += products
        else:
            float_products += products
    return Work(
        expert_elements=sum(entry.elements for entry in expert_entries),
        expert_bytes=sum(_stored_bytes(entry, itemsize) for entry in expert_entries),
        experts=experts,
        experts_per_token=chosen,
        lookup_bytes=_lookup_bytes(model, plan),
        head_products=head,
        float_products=float_products,
        integer_products=integer_products,
    )


def _per_token(model: PreTrainedModel, experts: int) -> int:
    config: Any = model.config.get_text_config(decoder=True)
    for name in _PER_TOKEN:
        value = getattr(config, name, None)
        if isinstance(value, int) and 0 < value <= experts:
            return value
    return experts


def _stored_bytes(entry: Entry, itemsize: int) -> int:
    """Bytes of a weight as it is stored: words, scales and zero points, or floats."""
    if entry.weight is None:
        return entry.elements * itemsize
    rows = entry.elements // entry.shape[-1]
    bits = rows * entry.weight.row_bits(entry.shape[-1], 8 * itemsize)
    if entry.weight.group_size == PER_TENSOR:
        matrices = entry.elements // (entry.shape[-1] * entry.shape[-2])
        bits += matrices * (8 * itemsize + (0 if entry.weight.symmetric else 8))
    return int(bits) // 8


def _head_elements(model: PreTrainedModel, plan: Plan) -> int:
    """Of the output head, once, and of an embedding that stands for it."""
    if found := [entry.elements for entry in plan.entries if entry.is_head]:
        return found[0]
    head: Any = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return 0 if weight is None else int(weight.numel())


def _lookup_bytes(model: PreTrainedModel, plan: Plan) -> int:
    """Of embeddings that no product reads: those that are not tied to a head in floating point."""
    head: Any = model.get_output_embeddings()
    packed = any(entry.is_head for entry in plan.quantized())
    multiplied = None if packed else id(getattr(head, "weight", None))
    found = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    return sum(w.numel() * w.element_size() for key, w in found.items() if key != multiplied)
