"""Products with packed weights, by every implementation that there is, also through layers and with odd inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from linear_reference import Exact, exact
from torch import Tensor

from qllm_hf.nn import PackedLinear
from qllm_hf.ops import LINEAR, Request, gpu, prefer
from qllm_hf.ops.experts import expert_product
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import PER_ROW, Spec
from qllm_hf.uniform import fake_quantize

from .outcome import VANISHING, Outcome, at, compare, levels
from .values import DTYPES, FINITE, VALUES, draw

LENGTHS = (1, 2, 31, 32, 40, 64, 72, 96, 127, 128, 129, 172, 256, 300, 1333)
GROUP_SIZES = (32, 64, 96, 128, 256, PER_ROW, 0, 24, 7)
SLOW = ("interpreter",)


def _limits(wanted: Exact, x: Tensor, weight: PackedTensor, name: str) -> Tensor:
    """The distance that rounding explains, also where numbers are next to the ends of a dtype."""
    tolerance = wanted.tolerance(name if name in ("integer", "dequantize") else "cpu")
    meant = weight._replace(scale=weight.scale.double()).decode(torch.float64).abs()
    # float32 in between: what is smaller than its smallest number vanishes, flushed or not
    small = (VANISHING if name not in ("integer", "dequantize") else 2e-38) * meant.sum(-1)
    tolerance = tolerance + small + 1e-35 * weight.length
    if name == "dequantize":  # factors are rounded to the dtype first; there they may be denormal
        limit = torch.finfo(x.dtype)
        tiny = limit.smallest_normal * limit.eps
        tolerance = tolerance + tiny * (meant.sum(-1) + x.double().abs().nan_to_num(0, 0, 0).sum(-1, keepdim=True))
    return tolerance


def _reach(weight: PackedTensor) -> Tensor:
    """What codes of each row of a weight [O, I] can mean at most: [O] in float64."""
    largest = weight.scale.double().abs().nan_to_num(0, 0, 0).amax(-1) * 2**weight.spec.bits
    return largest.expand(weight.words.shape[0])


def _case(source: random.Random, tokens: int) -> tuple[Tensor, PackedTensor, Tensor | None, Spec | None]:
    length, dtype = source.choice(LENGTHS), source.choice(DTYPES)
    spec = Spec(source.randint(2, 8), source.choice(GROUP_SIZES), source.random() < 0.4)
    outputs = source.choice((1, 2, 3, 5, 17, 33))
    weight_dtype = dtype if source.random() < 0.7 else source.choice(DTYPES)
    weight = PackedTensor.encode(draw(source.choice(list(VALUES)), (outputs, length), weight_dtype), spec)
    bias = draw(source.choice(list(FINITE)), (outputs,), dtype) if source.random() < 0.5 else None
    activation = Spec(source.randint(2, 8), PER_ROW, source.random() < 0.4) if source.random() < 0.5 else None
    return draw(source.choice(list(VALUES)), (tokens, length), dtype), weight, bias, activation


def _judge(
    name: str, shown: str, y: Tensor, x: Tensor, weight: PackedTensor, bias: Tensor | None, activation: Spec | None
) -> Outcome:
    wanted = exact(x, weight, bias, activation)
    # a token, or a row of the weight, that is not finite spoils all that it has part in
    tokens = ~x.isfinite().all(-1)
    if activation is not None:
        low, high = x.float().amin(-1).clamp(max=0), x.float().amax(-1).clamp(min=0)
        tokens = tokens | ~(high - low if not activation.symmetric else torch.maximum(high, -low)).isfinite()
    scales = weight.scale if weight.spec.group_size != 0 else weight.scale.expand(weight.words.shape[0], 1)
    spoiled = tokens[:, None] | ~scales.isfinite().all(-1)
    tolerance = _limits(wanted, x, weight, name)
    # float32 that goes beyond its end on the way may show that: products of scales, sums of integers times a scale
    largest = x.double().abs().amax(-1, keepdim=True).nan_to_num(0, 0, 0)
    on_the_way = _reach(weight) * weight.length * largest.clamp(min=255.0)
    unsure = (wanted.apart > 1e38) | (on_the_way > 1e38)
    if name == "dequantize":  # and so may factors that are beyond the dtype of x
        factors = x if activation is None else fake_quantize(x, activation)
        unsure |= ~factors.isfinite().all(-1, keepdim=True) | ~weight.decode(x.dtype).isfinite().all(-1)
    spoiled = spoiled | (unsure & ~y.isfinite())
    # next to what could be added: numbers are rounded in proportion to the largest in their block
    size = wanted.apart + largest * _reach(weight) * weight.length
    return compare(shown, y, wanted.y, tolerance.nan_to_num(torch.inf), size, spoiled)


def linear(source: random.Random) -> Iterator[Outcome]:
    """x times a weight, by each implementation in the table of the package, on each level."""
    tokens = source.choice((1, 2, 3, 4, 9, 10, 17, 33))
    x, weight, bias, activation = _case(source, tokens)
    request = Request("cpu", x.dtype, weight.spec, activation, weight.scale.dtype)
    for row in LINEAR:
        if row.refuses(request) is not None:
            continue
        if row.name == "cpu":
            for level in (*levels(), *(("amx_twin",) if "avx512_vnni" in levels() else ())):
                with at(level):
                    y = row.run(x, weight, bias, activation)
                yield _judge("cpu", f"cpu {level}", y, x, weight, bias, activation)
        elif row.name not in SLOW or x.numel() < 4000:
            if row.name in SLOW:  # without its trial, which would put torch's result in the place of a wrong one
                (y,) = gpu._multiplied(x, [(weight, bias)], activation)
            else:
                y = row.run(x, weight, bias, activation)
            yield _judge(row.name, row.name, y, x, weight, bias, activation)


def experts(source: random.Random) -> Iterator[Outcome]:
    """Rows times the matrices of the experts that were chosen for them."""
    count, number = source.randint(1, 4), source.randint(1, 9)
    x, _, _, activation = _case(source, number)
    spec = Spec(source.randint(2, 8), source.choice((32, 64, 128, PER_ROW)), source.random() < 0.4)
    weight = PackedTensor.encode(draw(source.choice(list(VALUES)), (count, 5, x.shape[-1]), x.dtype), spec)
    chosen = torch.randint(-1, count + 1, (number,))
    y = expert_product(x, chosen, weight, activation)
    for row, expert in enumerate(chosen.tolist()):
        if 0 <= expert < count:
            yield _judge("cpu", "experts", y[row : row + 1], x[row : row + 1], weight.part(expert), None, activation)
        else:
            yield Outcome("experts", 0, 0, "" if not y[row].any() else "a row of no expert is not zero")


Odd = Callable[[Tensor], Tensor]

INPUTS: dict[str, Odd] = {
    "as it is": lambda x: x,
    "expanded": lambda x: x[:1].expand(3, -1),
    "zero strides": lambda x: x[:1, :1].expand(4, x.shape[-1]),
    "columns": lambda x: x.t().contiguous().t(),
    "every second number": lambda x: x.repeat_interleave(2, -1)[:, ::2],
    "every second token": lambda x: x.repeat_interleave(2, 0)[::2],
    "an odd address": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "more dimensions": lambda x: x[None, :, None],
    "a vector": lambda x: x[0],
    "no tokens": lambda x: x[:0],
    "a gradient": lambda x: x.clone().requires_grad_(),
    "a negative view": lambda x: torch._neg_view(-x),
}


def layer(source: random.Random) -> Iterator[Outcome]:
    """A PackedLinear called with tensors of all kinds, twice: the second call goes a shorter way."""
    x, weight, bias, activation = _case(source, source.choice((1, 3, 12)))
    module = PackedLinear(
        weight.length, weight.words.shape[0], bias=bias is not None, spec=weight.spec, activation=activation,
        dtype=x.dtype,
    )  # fmt: skip
    module.assign_packed("weight", weight)
    if bias is not None:
        module.bias = torch.nn.Parameter(bias, requires_grad=False)
    odd = INPUTS[source.choice(list(INPUTS))](x)
    context = source.choice((torch.enable_grad, torch.no_grad, torch.inference_mode))
    flush = source.random() < 0.2
    for name in (None, "dequantize"):
        with prefer(name):
            for _ in range(2):
                torch.set_flush_denormal(flush)
                try:
                    with context():
                        y = module(odd)
                finally:
                    torch.set_flush_denormal(False)
                shown, plain = f"layer{', ' + name if name else ''}", odd.detach().resolve_neg()
                if y.shape != (*odd.shape[:-1], weight.words.shape[0]) or y.dtype != x.dtype:
                    yield Outcome(shown, 0, 0, f"{list(y.shape)} of {y.dtype} for x of {list(odd.shape)}")
                    continue
                found = y.detach().reshape(-1, weight.words.shape[0])
                watched = odd.is_neg() or (odd.requires_grad and context is torch.enable_grad)
                kind = "dequantize" if name or watched or not _by_kernels(x, weight, activation) else "cpu"
                if not len(found):
                    yield Outcome(shown, 0, 0)
                    continue
                yield _judge(kind, shown, found, plain.reshape(-1, weight.length), weight, bias, activation)


def _by_kernels(x: Tensor, weight: PackedTensor, activation: Spec | None) -> bool:
    request = Request("cpu", x.dtype, weight.spec, activation, weight.scale.dtype)
    return any(row.name == "cpu" and row.refuses(request) is None for row in LINEAR)
