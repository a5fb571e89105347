"""What a model takes under a scheme: bytes of weights, keys and values, and states, for any batch and length.

Weights are counted tensor by tensor from the plan, keys and values from a cache on the meta device: nothing is
loaded, and nothing is a formula about an architecture. `benchmarks/cost.py` compares it with measured bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..config import QllmConfig
from ..errors import ConfigError, ModelError
from ..plan import make_plan
from ..reporting.kv import twin_on_meta
from ..reporting.model import plan_report
from ..reporting.values import KvLayers
from .states import state_bytes
from .work import Work, work_of


@dataclass(frozen=True)
class KvGroup:
    """Layers whose keys and values are cached alike.

    Attributes:
        layers: how many.
        bytes_per_token: of one sequence, these layers together.
        window: tokens that a query sees at most; None where it sees all.
        products_per_pair: multiply-adds of attention for one query token and one token it sees, these layers together.
    """

    layers: int
    bytes_per_token: int
    window: int | None
    products_per_pair: int

    def kept(self, tokens: int) -> int:
        """How many of so many tokens are in the cache: a window keeps its last ones but one, which the query brings."""
        return tokens if self.window is None else min(tokens, self.window - 1)

    def seen(self, tokens: int) -> int:
        """How many of so many tokens the last one attends to."""
        return tokens if self.window is None else min(tokens, self.window)


@dataclass(frozen=True)
class ModelCost:
    """What a model takes under a scheme. All sizes are bytes.

    Attributes:
        scheme: such as "W4KV8"; "FP16" is the float model.
        dtype: of what stays in floating point.
        weight_bytes: of all parameters and stored buffers, scales and zero points among them; tied ones once.
        params: number of parameters.
        active_params: of them, without the experts that a token does not go to.
        kv_groups: layers that cache keys and values.
        state_bytes: of one sequence, whatever its length: states of state-space layers.
        work: what a token makes the model read and multiply.
        kv_unknown: why nothing is known about keys and values; empty if it is.
    """

    scheme: str
    dtype: str
    weight_bytes: int
    params: int
    active_params: int
    kv_groups: tuple[KvGroup, ...]
    state_bytes: int
    work: Work
    kv_unknown: str = ""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one more token of one sequence takes while no window is full."""
        return sum(group.bytes_per_token for group in self.kv_groups)

    def kv_bytes(self, batch: int, tokens: int) -> int:
        """Bytes of the keys and values of `batch` sequences of `tokens` tokens; windows keep only their last ones.

        Raises:
            ConfigError: batch or tokens is no positive number.
            ModelError: nothing is known about the cache of this architecture.
        """
        check_size(batch, tokens)
        if self.kv_unknown:
            raise ModelError(f"the size of this model's KV cache is not known: {self.kv_unknown}.")
        return batch * sum(group.bytes_per_token * group.kept(tokens) for group in self.kv_groups)

    def total_bytes(self, batch: int, tokens: int) -> int:
        """Bytes of weights, keys and values, and states. What a forward needs on top of them is not counted.

        Raises:
            ConfigError, ModelError: as `kv_bytes`.
        """
        return self.weight_bytes + self.kv_bytes(batch, tokens) + batch * self.state_bytes

    def crossover(self, batch: int = 1) -> int | None:
        """The fewest tokens of each sequence whose keys and values take more bytes than the weights; None if none do.

        None where there are no keys and values, or all layers have windows that are full before.

        Raises:
            ConfigError, ModelError: as `kv_bytes`.
        """
        check_size(batch, 1)
        full = max((group.window for group in self.kv_groups if group.window is not None), default=1)
        growing = sum(group.bytes_per_token for group in self.kv_groups if group.window is None)
        most = full if not growing else max(full, self.weight_bytes // (batch * growing) + 1)
        if self.kv_bytes(batch, most) <= self.weight_bytes:
            return None
        return 1 + bisect_right(range(1, most + 1), self.weight_bytes, key=lambda tokens: self.kv_bytes(batch, tokens))


def cost_of(model_on_meta: PreTrainedModel, config: QllmConfig | None) -> ModelCost:
    """What a model takes under a config, or as it is without one; no weights are needed (`loading.model_on_meta`).

    Raises:
        ConfigError, ModelError: the model cannot be quantized as asked.
    """
    config = QllmConfig() if config is None else config
    report = plan_report(model_on_meta, config)
    twin = twin_on_meta(model_on_meta)
    work = work_of(twin, make_plan(twin, config))
    return ModelCost(
        scheme=report.scheme,
        dtype=report.dtype,
        weight_bytes=report.parameter_bytes_after,
        params=report.elements,
        active_params=report.elements - work.idle_elements,
        kv_groups=tuple(_kv_group(group, twin) for group in report.kv.groups),
        state_bytes=state_bytes(model_on_meta),
        work=work,
        kv_unknown=report.kv.unknown,
    )


def check_size(batch: int, tokens: int) -> None:
    """Raises ConfigError if a batch or a length is no positive number."""
    for name, value in (("batch", batch), ("tokens", tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r}: give a positive number.")


def _kv_group(group: KvLayers, model: PreTrainedModel) -> KvGroup:
    queries, width = _attention(model, group)
    return KvGroup(group.layers, group.bytes_per_token_after, group.window, group.layers * queries * width)


def _attention(model: PreTrainedModel, group: KvLayers) -> tuple[int, int]:
    """Query heads, and elements of a key and a value as attention multiplies them: latents become heads first."""
    config: Any = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    queries = heads if isinstance(heads, int) else group.heads  # some configs have a list, one number for each layer
    if getattr(config, "kv_lora_rank", None):
        return queries, config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return queries, group.key_dim + group.value_dim
