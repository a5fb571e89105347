"""What gpu.py measures: cases, our kernels and bfloat16 in torch for each, and what their results have to be.

A case makes its tensors when it is its turn, on the device. References are in float64, over what the codes mean, which
torch alone says; packed tensors are compared bit for bit with those that torch makes on a processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qllm_hf.kv_rows import RowFormat
from qllm_hf.packed import PackedTensor, decode_reference, encode_reference
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import dequantize, quantize
from qllm_kernels.gpu import attention, decode, encode, integers, measured, weights

BASELINE = "bf16 in torch"
OURS = "qllm_hf"
CHECKED = 16
"""Tokens of a large batch, and rows of a weight, whose results are compared, from both ends."""
LIMIT = 2.5e-3
"""Relative error of a result in bfloat16: its rounding alone is 1.7e-3."""
LIMIT_DECODED = 4e-3
"""That of a product with a weight that is rounded to bfloat16, too."""
NOISE = 1.25
"""Attention may be so many times as far from float64 as bfloat16 attention over the decoded numbers."""
PATTERN = 1024  # tokens whose rows are repeated


class WrongResult(Exception):
    """A result that is not what it should be; the text says how far off it is."""


@dataclass(frozen=True)
class Method:
    """A way to do what a case asks.

    Attributes:
        prepare: operands, at addresses of their own.
        run: the operation on them, which returns its result.
        nbytes: of what has to be read: a weight, a history.
        error: of a result; None where it is the measure of others.
        allowed: the largest error.
        graph: whether a CUDA graph can hold it.
    """

    name: str
    library: str
    prepare: Callable[[], Any]
    run: Callable[[Any], Any]
    nbytes: int
    error: Callable[[Any], float] | None = None
    allowed: float = LIMIT
    graph: bool = True

    def verify(self) -> float | None:
        """The error of its result.

        Raises:
            WrongResult: it is larger than allowed, or not a number.
        """
        result = self.run(self.prepare())
        if self.error is None:
            return None
        found = self.error(result)
        if not found <= self.allowed:
            raise WrongResult(f"wrong: error {found:.6f}, allowed is {self.allowed:.6f}")
        return found


@dataclass(frozen=True)
class Case:
    """An operation of a shape, a size (tokens, or the length of a history) and a format.

    Attributes:
        methods: made on a device; the first one is bfloat16 in torch.
        goal: the ratio to reach, by method, of those that are ours.
    """

    operation: str
    shape: str
    size: int
    form: str
    methods: Callable[[torch.device], list[Method]]
    goal: Mapping[str, float]


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return ((found.double() - expected).norm() / expected.norm()).item()


def ends(count: int, device: torch.device) -> Tensor:
    """Numbers of the first and the last few of `count`."""
    every = torch.arange(count, device=device)
    return every if count <= CHECKED else torch.cat((every[: CHECKED // 2], every[-CHECKED // 2 :]))


def same_bits(found: Tensor, expected: Tensor, what: str) -> None:
    """Raises WrongResult unless both have the same bits, which torch makes on a processor."""
    if not torch.equal(found.cpu().view(torch.uint8), expected.contiguous().view(torch.uint8)):
        raise WrongResult(f"wrong: {what} differ from those that torch makes")


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def cloned(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same at other addresses."""
    return tuple(x.clone() for x in tensors)


# Weights


def make_weight(n: int, k: int, device: torch.device) -> Tensor:
    """bfloat16 [N, K]; each group of 64 has a mean of its own, so that a zero point that is off shows."""
    generator = torch.Generator(device).manual_seed(0)
    means = 0.006 * torch.randn(n, -(-k // 64), 1, device=device, generator=generator)
    weight = 0.02 * torch.randn(n, k, device=device, generator=generator)
    return (weight + means.expand(-1, -1, 64).reshape(n, -1)[:, :k]).bfloat16()


def packed_weight(weight: Tensor, spec: Spec) -> PackedTensor:
    """A weight packed by our kernel, which has to make what torch makes.

    Raises:
        WrongResult: it does not.
    """
    form = {"bits": spec.bits, "group_size": spec.group_size, "symmetric": spec.symmetric}
    words, scale, zero_point = encode.encode(weight, **form)
    some = ends(len(weight), weight.device)
    expected = encode_reference(weight[some].cpu(), spec)
    for found, wanted, what in zip((words, scale, zero_point), expected[:3], ("words", "scales", "zeros"), strict=True):
        if wanted is not None:
            same_bits(found[some], wanted, f"{what} of a weight")
    return PackedTensor(words, scale, zero_point, spec, weight.shape[1])


def product(x: Tensor, packed: PackedTensor) -> Tensor:
    """x [M, K] times what the codes of a weight mean, in float64, some rows at a time."""
    parts = []
    for start in range(0, packed.words.shape[0], 2048):
        meant = decode_reference(packed.part(slice(start, start + 2048)), torch.float32)
        parts.append(x.double() @ meant.double().T)
    return torch.cat(parts, -1)


def shape_of(packed: PackedTensor) -> dict[str, int]:
    """As `qllm_kernels.gpu.measured` asks for it."""
    return {
        "outputs": packed.words.shape[0],
        "inputs": packed.length,
        "bits": packed.spec.bits,
        "group_size": packed.spec.group_size,
    }


def form_of(packed: PackedTensor) -> dict[str, Any]:
    """As our kernels ask for it."""
    return {"bits": packed.spec.bits, "group_size": packed.spec.group_size, "length": packed.length}


def weight_operands(packed: PackedTensor) -> Callable[[], Any]:
    """Copies of what a packed weight has."""
    return lambda: tuple(None if part is None else part.clone() for part in packed[:3])


def linear_methods(n: int, k: int, m: int, spec: Spec, device: torch.device) -> list[Method]:
    """Tokens in bfloat16 times a packed weight: unpacked in registers, or decoded first."""
    weight, x = make_weight(n, k, device), torch.randn(m, k, device=device).bfloat16()
    packed, some = packed_weight(weight, spec), ends(m, device)
    expected = product(x[some], packed)
    config = measured.find("linear", weights.Config, shape_of(packed), m, device)
    form, size = form_of(packed), packed.nbytes()
    arguments = weight_operands(packed), size, lambda y: relative(y[some], expected)
    methods = [
        Method(BASELINE, "torch", lambda: cloned(weight), lambda w: F.linear(x, *w), nbytes(weight)),
        _ours("fused", *arguments, lambda w: weights.linear(x, *w, **form, config=config)),
    ]
    if m >= 256:
        run = lambda w: decode.linear_by_decoding(x, *w, **form)  # noqa: E731
        methods.append(_ours("decoded first", *arguments, run, LIMIT_DECODED))
    return methods


def integer_methods(n: int, k: int, m: int, spec: Spec, device: torch.device) -> list[Method]:
    """Tokens of 8 bits times a packed weight, with and without the time to quantize tokens."""
    weight, x = make_weight(n, k, device), torch.randn(m, k, device=device).bfloat16()
    packed, some = packed_weight(weight, spec), ends(m, device)
    eight = Spec(8, PER_ROW, symmetric=True)
    expected = product(dequantize(*quantize(x[some].cpu(), eight), eight, torch.float32).to(device), packed)
    config = measured.find("integers", integers.Config, shape_of(packed), m, device)
    form, arguments = form_of(packed), (weight_operands(packed), packed.nbytes(), lambda y: relative(y[some], expected))
    activation: dict[str, Any] = {"activation_bits": 8, "activation_symmetric": True}
    spans = integers.sums_over(packed.zero_point, **form, activation_bits=8)
    tokens = integers.quantize_tokens(x, bits=8, symmetric=True, sums_over=spans)
    product_form = {"bits": spec.bits, "group_size": spec.group_size}
    return [
        Method(BASELINE, "torch", lambda: cloned(weight), lambda w: F.linear(x, *w), nbytes(weight)),
        _ours("product", *arguments, lambda w: integers.multiply(tokens, *w, **product_form, config=config)),
        _ours("all", *arguments, lambda w: integers.linear(x, *w, **form, **activation, config=config)),
    ]


def _ours(
    name: str,
    prepare: Callable[[], Any],
    size: int,
    error: Callable[[Any], float],
    run: Callable[[Any], Any],
    allowed: float = LIMIT,
) -> Method:
    return Method(name, OURS, prepare, run, size, error, allowed)


# Keys and values


def make_history(batch: int, heads: int, tokens: int, dim: int, device: torch.device, seed: int) -> Tensor:
    """bfloat16 [B, H, T, D] of which the first PATTERN tokens are repeated: speed does not depend on values."""
    generator = torch.Generator(device).manual_seed(seed)
    some = torch.randn(batch, heads, min(tokens, PATTERN), dim, device=device, generator=generator).bfloat16()
    return repeated(some, tokens)


def repeated(some: Tensor, tokens: int) -> Tensor:
    """[.., T', R] -> [.., tokens, R], over and over."""
    return some.repeat(1, 1, -(-tokens // some.shape[2]), 1)[:, :, :tokens].contiguous()


def packed_rows(x: Tensor, form: RowFormat) -> Tensor:
    """Rows of a history, made by our kernel, which has to make what torch makes.

    Raises:
        WrongResult: it does not.
    """
    assert form.spec is not None
    some = x[:, :, :PATTERN].contiguous()
    rows = some.new_empty((*some.shape[:3], form.words), dtype=torch.int16)
    encode.encode_rows_into(
        some, rows, bits=form.spec.bits, group_size=form.spec.group_size, symmetric=form.spec.symmetric
    )
    same_bits(rows[:1, :1], form.encode_reference(some[:1, :1].cpu()), "rows of a cache")
    return repeated(rows, x.shape[2])


def meant(rows: Tensor, form: RowFormat) -> Tensor:
    """What rows mean, in float64."""
    part = form.split(rows[:, :, :PATTERN])
    return repeated(decode_reference(part._replace(scale=part.scale.double()), torch.float64), rows.shape[2])


def exact_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """In float64: query [B, Hq, 1, D] over [B, H, T, D], a key head at a time."""
    group = query.shape[1] // keys.shape[1]
    found = torch.empty(*query.shape[:3], values.shape[3], dtype=torch.float64, device=query.device)
    for head in range(keys.shape[1]):
        here = slice(head * group, (head + 1) * group)
        scores = query[:, here, 0].double() @ keys[:, head].transpose(-1, -2) * query.shape[-1] ** -0.5
        found[:, here, 0] = torch.softmax(scores, -1) @ values[:, head]
    return found


def attention_methods(
    heads: int, kv_heads: int, dim: int, batch: int, tokens: int, spec: Spec, device: torch.device
) -> list[Method]:
    """One query per sequence over a packed history."""
    form = RowFormat(spec, dim, torch.bfloat16)
    keys, values = (make_history(batch, kv_heads, tokens, dim, device, seed) for seed in (1, 2))
    query = 1.5 * torch.randn(batch, heads, 1, dim, device=device, generator=torch.Generator(device).manual_seed(3))
    query = query.bfloat16()
    rows = [packed_rows(x, form) for x in (keys, values)]
    expected = exact_attention(query, *(meant(part, form) for part in rows))
    decoded = [meant(part, form).bfloat16() for part in rows]
    limit = relative(F.scaled_dot_product_attention(query, *decoded, enable_gqa=True), expected)
    del decoded
    shape = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "batch": batch}
    shape |= {"bits": spec.bits, "group_size": spec.group_size}
    config = measured.find("attention", attention.Config, shape, tokens, device)
    options: dict[str, Any] = {"key_bits": spec.bits, "value_bits": spec.bits, "group_size": spec.group_size}
    options |= {"symmetric": False, "scale": dim**-0.5, "config": config}
    floats = nbytes(keys, values)

    def grouped(history: Any) -> Tensor:
        out = F.scaled_dot_product_attention(query.view(batch, kv_heads, heads // kv_heads, dim), *history)
        return out.view(query.shape)

    return [
        Method(
            BASELINE, "torch", lambda: cloned(keys, values),
            lambda history: F.scaled_dot_product_attention(query, *history, enable_gqa=True), floats,
        ),
        Method("bf16, heads as rows", "torch", lambda: cloned(keys, values), grouped, floats),
        Method(
            "fused", OURS, lambda: cloned(*rows), lambda history: attention.attend(query, *history, **options),
            nbytes(*rows), lambda out: relative(out, expected), max(LIMIT, NOISE * limit),
        ),
    ]  # fmt: skip


def append_methods(
    heads: int, dim: int, batch: int, tokens: int, spec: Spec, device: torch.device, capacity: int = 4096
) -> list[Method]:
    """New tokens written to a static cache: quantized and packed, or copied as they are."""
    form = RowFormat(spec, dim, torch.bfloat16)
    new = [make_history(batch, heads, tokens, dim, device, seed) for seed in (1, 2)]
    expected = [form.encode_reference(x.cpu()) for x in new]
    positions = torch.arange(100, 100 + tokens, device=device)
    groups = {"key_group_size": spec.group_size, "value_group_size": spec.group_size}

    def room(words: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        sides = (torch.zeros(batch, heads, capacity, words, dtype=dtype, device=device) for _ in range(2))
        return next(sides), next(sides)

    def copy(history: Any) -> Any:
        for side, x in zip(history, new, strict=True):
            side.index_copy_(2, positions, x)
        return history

    def write(history: Any) -> Any:
        encode.append(*new, *history, positions, bits=spec.bits, **groups, symmetric=False)
        return history

    def error(history: Any) -> float:
        for side, wanted in zip(history, expected, strict=True):
            same_bits(side.index_select(2, positions), wanted, "appended rows")
            if int(side.count_nonzero()) != int(wanted.count_nonzero()):
                raise WrongResult("wrong: more was written than the new tokens")
        return 0.0

    return [
        Method(BASELINE, "torch", partial(room, dim, torch.bfloat16), copy, nbytes(*new)),
        Method("fused", OURS, partial(room, form.words, torch.int16), write, nbytes(*new), error),
    ]


# The list


def _format(letter: str, bits: int, group_size: int) -> str:
    return f"{letter}{bits} " + ("per row" if group_size == PER_ROW else f"g{group_size}")


def linear_case(n: int, k: int, m: int, bits: int, group_size: int = 128, **goal: float) -> Case:
    methods = partial(linear_methods, n, k, m, Spec(bits, group_size))
    return Case("linear", f"{n}x{k}", m, _format("W", bits, group_size), methods, _goals(goal))


def integer_case(n: int, k: int, m: int, bits: int, group_size: int, **goal: float) -> Case:
    spec = Spec(bits, group_size, symmetric=bits == 8)
    form = _format("W", bits, group_size) + " A8"
    return Case("integers", f"{n}x{k}", m, form, partial(integer_methods, n, k, m, spec), _goals(goal))


def attention_case(bits: int, group_size: int, batch: int, tokens: int, **goal: float) -> Case:
    return small_attention_case(32, 8, 128, bits, group_size, batch, tokens, **goal)


def small_attention_case(
    heads: int, kv_heads: int, dim: int, bits: int, group_size: int, batch: int, tokens: int, **goal: float
) -> Case:
    methods = partial(attention_methods, heads, kv_heads, dim, batch, tokens, Spec(bits, group_size))
    shape = f"{batch} x {heads}/{kv_heads}x{dim}"
    return Case("attention", shape, tokens, _format("KV", bits, group_size), methods, _goals(goal))


def append_case(heads: int, dim: int, bits: int, group_size: int, batch: int, tokens: int, capacity: int) -> Case:
    methods = partial(append_methods, heads, dim, batch, tokens, Spec(bits, group_size), capacity=capacity)
    return Case("append", f"{batch} x {heads}x{dim}", tokens, _format("KV", bits, group_size), methods, {})


def _goals(named: Mapping[str, float]) -> dict[str, float]:
    """Goals by method: names as keywords have no blanks."""
    return {name.replace("_", " "): goal for name, goal in named.items()}


LARGE, MIDDLE, SMALL = (28672, 8192), (11008, 4096), (4096, 4096)  # outputs, inputs


def all_cases() -> Iterator[Case]:
    """In the order of what matters most, since time may run out."""
    for batch, tokens in ((1, 32768), (16, 4096), (1, 131072)):
        yield attention_case(4, 64, batch, tokens, fused=2.6)
        yield attention_case(2, 32, batch, tokens, fused=3.5)
        yield attention_case(3, 64, batch, tokens, fused=2.8)
        yield attention_case(8, 128, batch, tokens, fused=1.6)
    for shape, goals in ((LARGE, (3.0, 2.6, 2.6, 1.9)), (MIDDLE, (2.5,)), (SMALL, (2.4,))):
        for m, goal in zip((1, 8, 16, 64), (*goals, *[0.0] * 3), strict=False):
            yield linear_case(*shape, m, 4, **({"fused": goal} if goal else {}))
    yield linear_case(*LARGE, 1, 3, fused=3.5)
    yield linear_case(*LARGE, 1, 2, 64, fused=4.2)
    yield linear_case(*LARGE, 1, 8, fused=1.7)
    for m, goal in ((2048, 0.85), (8192, 0.95)):
        yield linear_case(*LARGE, m, 4, fused=goal, decoded_first=goal)
    for m in (2048, 8192):
        yield integer_case(*LARGE, m, 8, PER_ROW, product=1.5, all=1.4)
    yield integer_case(*LARGE, 2048, 4, 128, all=1.2)
    yield integer_case(*SMALL, 2048, 8, PER_ROW, product=1.5, all=1.4)
    yield append_case(8, 128, 4, 64, 1, 1, 4096)
    yield append_case(8, 128, 4, 64, 16, 1, 4096)
    for bits, group_size in ((3, 128), (2, 64), (2, 128), (8, 128)):
        for m in (8, 16, 64):
            yield linear_case(*LARGE, m, bits, group_size)
        yield linear_case(*SMALL, 1, bits, group_size)
    for m in (2048, 8192):
        yield linear_case(*SMALL, m, 4)
        yield linear_case(*LARGE, m, 2, 128)


def quick_cases() -> Iterator[Case]:
    """One of each kind, in a minute or two."""
    yield attention_case(4, 64, 1, 32768, fused=2.6)
    yield attention_case(2, 32, 1, 32768, fused=3.5)
    yield linear_case(*LARGE, 1, 4, fused=3.0)
    yield linear_case(*LARGE, 16, 4, fused=2.6)
    yield linear_case(*LARGE, 2048, 4, fused=0.85, decoded_first=0.85)
    yield integer_case(*LARGE, 2048, 8, PER_ROW, product=1.5, all=1.4)
    yield append_case(8, 128, 4, 64, 1, 1, 4096)


def tiny_cases() -> Iterator[Case]:
    """One of each kind that Triton's interpreter can take."""
    for bits, group_size in ((2, 64), (3, 128), (4, 128), (8, 128)):
        yield linear_case(64, 256, 3, bits, group_size)
    yield linear_case(32, 128, 256, 4)
    yield integer_case(32, 256, 3, 8, PER_ROW)
    yield integer_case(32, 256, 3, 4, 128)
    for bits, group_size in ((2, 32), (3, 64), (4, 64), (8, 64)):
        yield small_attention_case(4, 2, 64, bits, group_size, 2, 100)
    yield append_case(2, 64, 4, 64, 2, 1, 128)
