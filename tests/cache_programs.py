"""Random programs for cache layers, run on a packed layer and on transformers' own layer beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import cache_utils

from qllm_hf import Scheme
from qllm_hf.cache_layers import quantize_layer
from qllm_hf.kv_rows import KvFormat
from qllm_hf.uniform import fake_quantize

WINDOW, LONGEST = 5, 40
HEADS = 2


class UnknownLayer(cache_utils.DynamicLayer):
    """Stands for a layer of a later release: it is not on the list of layers that were read."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # looks inside its keys, as no layer on the list does: a packed row would come out wrong here
        return super().update(key_states.flip(-1), value_states, *args, **kwargs)


def _recording() -> Any:
    layer = cache_utils.DynamicSlidingWindowLayer(sliding_window=WINDOW)
    layer.activate_past_recording()
    return layer


def _named(name: str, **options: int) -> dict[str, Callable[[], Any]]:
    """The layer class of that name, where this release of transformers has it."""
    cls = getattr(cache_utils, name, None)
    return {} if cls is None else {name: lambda: cls(**options)}


STATIC_OPTIONS = {"max_cache_len": LONGEST}
KINDS: dict[str, Callable[[], Any]] = {
    **_named("DynamicLayer"),
    **_named("DynamicSlidingWindowLayer", sliding_window=WINDOW),
    "DynamicSlidingWindowLayer, recording": _recording,
    **_named("DynamicIndexedLayer"),
    **_named("StaticLayer", **STATIC_OPTIONS),
    **_named("StaticSlidingWindowLayer", sliding_window=WINDOW, **STATIC_OPTIONS),
    **_named("StaticIndexedLayer", **STATIC_OPTIONS),
    **_named("LinearAttentionAndFullAttentionLayer"),
    **_named("LinearAttentionAndSlidingWindowAttentionLayer", sliding_window=WINDOW),
    **_named("LinearAttentionAndStaticFullAttentionLayer", **STATIC_OPTIONS),
    **_named("LinearAttentionAndStaticSlidingWindowAttentionLayer", sliding_window=WINDOW, **STATIC_OPTIONS),
    "UnknownLayer": UnknownLayer,
}

# (operation, its number); what the number means depends on the operation.
Step = tuple[str, int]
UPDATE = st.tuples(st.just("update"), st.integers(1, 7))
ANYTHING = st.one_of(
    UPDATE,
    UPDATE,  # twice, since most others do nothing to an empty layer
    st.tuples(st.just("crop"), st.integers(0, 4)),
    st.tuples(st.just("reorder"), st.integers(0, 99)),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.just("select"), st.integers(0, 99)),
    st.tuples(st.sampled_from(["reset", "offload", "prefetch", "recurrent"]), st.just(0)),
    st.tuples(st.sampled_from(["conv", "indexer"]), st.integers(1, 5)),
)


@dataclass(frozen=True)
class Case:
    """A layer's life: how K and V are quantized, their shape, what happens, and when it becomes a packed one."""

    kv_format: KvFormat
    dtype: torch.dtype
    key_dim: int
    value_dim: int
    steps: list[Step]
    upgrade_at: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    steps = draw(st.lists(ANYTHING, min_size=1, max_size=10))
    scheme = Scheme(
        kv=draw(st.integers(2, 8)),
        kv_group_size=draw(st.sampled_from([-1, 4, 8, 128])),
        kv_symmetric=draw(st.booleans()),
        paper_exact=draw(st.booleans()),
    )
    return Case(
        kv_format=KvFormat(scheme, keys_only=draw(st.booleans())),
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])),
        key_dim=draw(st.sampled_from([4, 8, 20, 24, 80])),
        value_dim=draw(st.sampled_from([4, 8, 20])),
        steps=steps,
        upgrade_at=draw(st.sampled_from([0, 0, len(steps) // 2])),
        seed=draw(st.integers(0, 9999)),
    )


def rounded(keys: Tensor, values: Tensor, kv_format: KvFormat) -> tuple[Tensor, Tensor]:
    """K and V as they are meant to come back from a quantized cache."""
    scheme = kv_format.scheme
    keys = fake_quantize(keys, scheme.kv_spec(keys.shape[-1]))
    return keys, values if kv_format.keys_only else fake_quantize(values, scheme.kv_spec(values.shape[-1]))


class Pair:
    """A layer under test, and transformers' own layer of that kind, fed rounded K and V from its first token on."""

    def __init__(self, make: Callable[[], Any], case: Case) -> None:
        self.case, self.batch, self.is_quantized = case, 2, False
        self.ours, self.reference = make(), make()
        self.generator = torch.Generator().manual_seed(case.seed)

    def run(self) -> None:
        for number, step in enumerate(self.case.steps):
            if number == self.case.upgrade_at:
                self.upgrade()
            if not self.apply(*step):
                return
        if self.case.upgrade_at >= len(self.case.steps):
            self.upgrade()

    def upgrade(self) -> None:
        self.ours = quantize_layer(self.ours, self.case.kv_format)
        self.is_quantized = True
        compare(state(self.ours), state(self.reference))

    def apply(self, operation: str, number: int) -> bool:
        """Does one step on both; False where a program ends.

        That is if transformers' own layer raises (then ours must raise the same), or when the batch gets large.
        """
        method = {
            "update": "update",
            "reorder": "reorder_cache",
            "repeat": "batch_repeat_interleave",
            "select": "batch_select_indices",
            "conv": "update_conv_state",
            "recurrent": "update_recurrent_state",
            "indexer": "update_indexer",
        }.get(operation, operation)
        assert hasattr(self.ours, method) == hasattr(self.reference, method)
        if not hasattr(self.reference, method):
            return True
        if operation == "update":
            return self._update(number)
        arguments = self._arguments(operation, number)
        expected = attempt(getattr(self.reference, method), *arguments)
        got = attempt(getattr(self.ours, method), *arguments)
        if isinstance(expected, Exception):
            assert type(got) is type(expected), f"{operation}: {got!r} instead of {expected!r}"
            return False
        compare(got, expected)
        if self.is_quantized:
            compare(state(self.ours), state(self.reference))
        return self.batch <= 8

    def _update(self, tokens: int) -> bool:
        if self.reference.is_compileable and "cumulative" not in vars(self.reference):
            length = int(self.reference.get_seq_length())
            if not self.reference.is_sliding and length + tokens > LONGEST:
                return False
        keys, values = self._random(tokens, self.case.key_dim), self._random(tokens, self.case.value_dim)
        expected = attempt(self.reference.update, *rounded(keys, values, self.case.kv_format))
        got = attempt(self.ours.update, keys, values)
        if isinstance(expected, Exception):  # a hybrid layer whose states have another batch size by now
            assert type(got) is type(expected), f"update: {got!r} instead of {expected!r}"
            return False
        if self.is_quantized:
            compare(got, expected)
            compare(state(self.ours), state(self.reference))
        return True

    def _random(self, tokens: int, dim: int) -> Tensor:
        """[B, H, T, D] in the memory order of an attention module, of varied size, some all positive or all zero."""
        x = torch.randn(self.batch, tokens, HEADS, dim, generator=self.generator, dtype=torch.float64)
        shape = (self.batch, tokens, HEADS, 1)
        x = x * 10 ** torch.empty(shape, dtype=x.dtype).uniform_(-4, 3, generator=self.generator)
        kind = torch.randint(0, 8, shape, generator=self.generator)
        x = torch.where(kind == 0, torch.zeros_like(x), torch.where(kind == 1, x.abs() + 1, x))
        return x.to(self.case.dtype).transpose(1, 2)

    def _arguments(self, operation: str, number: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(number)
        match operation:
            case "crop":
                return (-number,)
            case "reorder":
                return (torch.randint(0, self.batch, (self.batch,), generator=generator),)
            case "repeat":
                self.batch *= number
                return (number,)
            case "select":
                indices = torch.randint(0, self.batch, (1 + number % self.batch,), generator=generator)
                self.batch = len(indices)
                return (indices,)
            case "conv":
                return (torch.randn(self.batch, 3, number, generator=self.generator),)
            case "recurrent":
                return (torch.randn(self.batch, 3, 2, generator=self.generator),)
            case "indexer":
                return (torch.randn(self.batch, number, 6, generator=self.generator),)
        return ()


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, or the exception it raises."""
    try:
        return function(*arguments)
    except Exception as error:  # compared with what the other layer raises
        return error


def state(layer: Any) -> dict[str, Any]:
    """Everything that a cache, a mask or `generate` can ask a layer for."""
    found: dict[str, Any] = {
        name: getattr(layer, name, None)
        for name in (
            "keys",
            "values",
            "is_initialized",
            "is_croppable",
            "is_sliding",
            "is_compileable",
            "device",
            "supports_early_init",
            "conv_states",
            "recurrent_states",
            "has_previous_state",
            "indexer_keys",
            "record_past",
            "sliding_window",
            "max_cache_len",
            "_sliding_window_tensor",
            "cumulative_length",
            "cumulative_length_int",
        )
    }
    found["seq_length"] = layer.get_seq_length()
    found["max_length"] = layer.get_max_length()
    found["mask_sizes"] = [layer.get_mask_sizes(query) for query in (1, 3)]
    return found


def compare(got: Any, expected: Any) -> None:
    """Asserts that two nested results are the same, tensors in dtype, shape and every bit but the sign of zero."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            compare(got[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            compare(one, other)
    elif isinstance(expected, Tensor):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert torch.equal(got.nan_to_num(nan=12345.0), expected.nan_to_num(nan=12345.0))
    else:
        assert got == expected
