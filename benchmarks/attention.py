"""How fast a decoded token attends to a long history on a CPU: packed keys and values, floats, and what decodes all.

    python benchmarks/attention.py [--tokens 2048,8192,32768] [--shapes 32/4x64,32/32x64,32/8x128,32/32x128]
        [--bits 8,4,3,2] [--rounds 20]

One process runs all methods in turns on the same history, on 2 threads; results/attention.csv has their medians. Each
result is verified first, against attention in float64 over what the codes mean: ours must not be further from it than
bfloat16 attention over the decoded keys and values is. What is not is not timed. Histories are rotated through more
bytes than the last-level cache holds; they repeat the rows of 1,024 tokens, since speed does not depend on values.

- `bf16 sdpa` is F.scaled_dot_product_attention as transformers calls it for one token without padding, `bf16 sdpa,
  grouped` the same with the query heads of one key head as its rows, as transformers 5.23 does with padding. `ratio` is
  the first one's median over the method's, `ratio_to_grouped` the second one's.
- `bf16 append` is a step of DynamicCache: the history is copied for one more token, then attended to.
- `decode all` decodes the packed rows and attends to floats, as before there was a kernel. `QuantizedCache` is a step
  of transformers' own quantized cache (4 and 2 bits, with optimum-quanto): the same, and a copy.
- `gb_per_s` is bytes of the history as the method keeps it over time, `read_gb_per_s` what the machine can read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ["OMP_NUM_THREADS"] = "2"

import torch
import torch.nn.functional as F
from machine import write_results
from peers.bandwidth import read_bandwidth
from peers.interleaved import Call, interleave, round_bytes, timed
from torch import Tensor

from qllm_hf.attention import KvRows, Request, prefer, resolve
from qllm_hf.kv_rows import RowFormat
from qllm_hf.scheme import Spec

THREADS = 2
SHAPES = ("32/4x64", "32/32x64", "32/8x128", "32/32x128")
CACHE_BYTES = 600_000_000
PATTERN = 1024  # tokens whose rows are repeated
BASELINE, GROUPED = "bf16 sdpa", "bf16 sdpa, grouped"
TOLERANCE = 1.1
"""Ours may be so many times as far from float64 as bfloat16 attention over the decoded numbers: both are noise."""


@dataclass(frozen=True)
class Shape:
    """Query heads, key heads, head dim."""

    heads: int
    kv_heads: int
    dim: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Of "32/4x64"."""
        heads, _, rest = text.partition("/")
        kv_heads, _, dim = rest.partition("x")
        return cls(int(heads), int(kv_heads), int(dim))


@dataclass(frozen=True)
class Method:
    """A way to attend: `prepare` makes one copy of its history, `run` attends to it."""

    name: str
    bits: int
    prepare: Callable[[], Any]
    run: Callable[[Any], Tensor]
    nbytes: int


def history(shape: Shape, tokens: int) -> Tensor:
    """bfloat16 [1, H, T, D]."""
    return torch.randn(1, shape.kv_heads, PATTERN, shape.dim).bfloat16().repeat(1, 1, tokens // PATTERN, 1)


def packed(x: Tensor, bits: int) -> KvRows:
    """Rows of x [1, H, T, D], of which the first PATTERN tokens are repeated."""
    form = RowFormat(Spec(bits, min(128, x.shape[-1]), False), x.shape[-1], x.dtype)
    return KvRows(form.encode(x[:, :, :PATTERN]).repeat(1, 1, x.shape[2] // PATTERN, 1), form)


def float_methods(shape: Shape, query: Tensor, keys: Tensor, values: Tensor) -> Iterator[Method]:
    """Those that keep floats."""
    nbytes = 2 * keys.numel() * keys.element_size()
    group = shape.heads // shape.kv_heads
    new = keys[:, :, :1].clone()

    def whole(history: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, *history, enable_gqa=group > 1)

    def grouped(history: Any) -> Tensor:
        out = F.scaled_dot_product_attention(query.view(1, shape.kv_heads, group, shape.dim), *history)
        return out.view(query.shape)

    def appended(history: Any) -> Tensor:
        longer = [torch.cat([part, new], -2) for part in history]
        return whole([part[:, :, :-1] for part in longer])  # the same history, so that results can be compared

    def prepare() -> Any:
        return keys.clone(), values.clone()

    for name, run in ((BASELINE, whole), (GROUPED, grouped), ("bf16 append", appended)):
        yield Method(name, 16, prepare, run, nbytes)


def packed_methods(query: Tensor, keys: Tensor, values: Tensor, bits: int) -> Iterator[Method]:
    """The kernel, and decoding all."""
    rows = [packed(x, bits) for x in (keys, values)]
    nbytes = sum(part.rows.numel() * part.rows.element_size() for part in rows)

    def prepare() -> Any:
        return [KvRows(part.rows.clone(), part.format) for part in rows]

    def attend(name: str) -> Callable[[Any], Tensor]:
        def run(history: Any) -> Tensor:
            with prefer(name):
                chosen = resolve(Request(query, *history, None, False, query.shape[-1] ** -0.5)).chosen
            if chosen.name != name:
                raise RuntimeError(f"{chosen.name} ran instead of {name}: build the kernels first")
            return chosen.run(Request(query, *history, None, False, query.shape[-1] ** -0.5))

        return run

    yield Method("kernel", bits, prepare, attend("kernel"), nbytes)
    yield Method("decode all", bits, prepare, attend("dequantize"), nbytes)


def quantized_cache(shape: Shape, query: Tensor, keys: Tensor, values: Tensor, bits: int) -> Method | None:
    """transformers' own quantized cache, where optimum-quanto is installed and has these bits."""
    try:
        import optimum.quanto  # noqa: F401
    except ImportError:
        return None
    from transformers import LlamaConfig
    from transformers.cache_utils import QuantizedCache

    if bits not in (2, 4):
        return None
    sizes = {"num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "num_hidden_layers": 1}
    config = LlamaConfig(hidden_size=shape.heads * shape.dim, **sizes)
    new = keys[:, :, :1].clone()

    def prepare() -> Any:
        cache = QuantizedCache(backend="quanto", config=config, nbits=bits, residual_length=10**9)
        cache.update(keys, values, 0)
        return cache

    def run(cache: Any) -> Tensor:
        longer = cache.update(new, new, 0)
        return F.scaled_dot_product_attention(query, *longer, enable_gqa=shape.heads > shape.kv_heads)

    return Method("QuantizedCache", bits, prepare, run, 0)


def exact(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention in float64: [1, Hq, 1, D], a head at a time."""
    group = query.shape[1] // keys.shape[1]
    heads = []
    for head in range(query.shape[1]):
        k, v = (x[0, head // group].double() for x in (keys, values))
        scores = k @ query[0, head, 0].double() * query.shape[-1] ** -0.5
        heads.append(torch.softmax(scores, -1) @ v)
    return torch.stack(heads)[None, :, None]


def meant(x: Tensor, bits: int) -> Tensor:
    """What the codes of x mean, in float64, without a rounding of the products."""
    rows = packed(x, bits)
    part = rows.format.split(rows.rows[:, :, :PATTERN])
    return part._replace(scale=part.scale.double()).decode(torch.float64).repeat(1, 1, x.shape[2] // PATTERN, 1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def errors(query: Tensor, keys: Tensor, values: Tensor, bits: int, run: Callable[[], Tensor]) -> tuple[float, float]:
    """Of the kernel, and of bfloat16 attention over decoded keys and values."""
    expected = exact(query, meant(keys, bits), meant(values, bits))
    decoded = [packed(x, bits).decode() for x in (keys, values)]
    gqa = query.shape[1] > keys.shape[1]
    return relative_error(run(), expected), relative_error(
        F.scaled_dot_product_attention(query, *decoded, enable_gqa=gqa), expected
    )


def rows_of(shape: Shape, tokens: int, bits_list: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each method."""
    torch.manual_seed(0)
    query = 1.5 * torch.randn(1, shape.heads, 1, shape.dim)
    query, keys, values = query.bfloat16(), history(shape, tokens), history(shape, tokens)
    methods = [*float_methods(shape, query, keys, values)]
    found: dict[tuple[str, int], tuple[float | str, float | str]] = {}
    for bits in bits_list:
        ours = [*packed_methods(query, keys, values, bits)]
        kernel = ours[0]
        error, limit = errors(query, keys, values, bits, lambda kernel=kernel: kernel.run(kernel.prepare()))
        if not error <= TOLERANCE * limit:
            raise SystemExit(f"wrong: KV{bits} {shape} {tokens}: error {error:.5f}, bfloat16 attention has {limit:.5f}")
        found[kernel.name, bits] = error, limit
        peer = quantized_cache(shape, query, keys, values, bits)
        methods += ours + ([peer] if peer else [])
    bandwidth, source = read_bandwidth()
    copies: dict[str, list[Any]] = {}
    calls = []
    for method in methods:
        label = f"{method.name} {method.bits}"
        copies[label] = [method.prepare()]
        run = lambda place, method=method, label=label: method.run(copies[label][place])  # noqa: E731
        seconds = min(timed(lambda run=run: run(0)).seconds for _ in range(3))
        calls.append(Call(label, run, seconds, method.nbytes))
    whole = round_bytes(calls)
    for call, method in zip(calls, methods, strict=True):
        wanted = call.copies(whole, CACHE_BYTES) if method.nbytes else 1
        copies[call.name] += [method.prepare() for _ in range(wanted - 1)]
    times = interleave(calls, {name: len(some) for name, some in copies.items()}, rounds)
    whole_time, grouped_time = (times[f"{name} 16"].median for name in (BASELINE, GROUPED))
    for method in methods:
        time = times[f"{method.name} {method.bits}"]
        error, limit = found.get((method.name, method.bits), ("", ""))
        yield {
            "heads": f"{shape.heads}/{shape.kv_heads}",
            "head_dim": shape.dim,
            "tokens": tokens,
            "bits": method.bits,
            "method": method.name,
            "us": round(time.median * 1e6, 1),
            "q1_us": round(time.first * 1e6, 1),
            "q3_us": round(time.third * 1e6, 1),
            "samples": time.samples,
            "dropped": time.dropped,
            "disturbed": int(time.disturbed),
            "ratio": round(whole_time / time.median, 3),
            "ratio_to_grouped": round(grouped_time / time.median, 3),
            "gb_per_s": round(method.nbytes / time.median / 1e9, 2) if method.nbytes else "",
            "read_gb_per_s": round(bandwidth, 1),
            "read_by": source,
            "error": f"{error:.6f}" if error != "" else "",
            "bf16_error": f"{limit:.6f}" if limit != "" else "",
        }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="2048,8192,32768")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--bits", default="8,4,3,2")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows: list[dict[str, Any]] = []
    for text in given.shapes.split(","):
        for tokens in map(int, given.tokens.split(",")):
            for row in rows_of(Shape.parse(text), tokens, [int(bits) for bits in given.bits.split(",")], given.rounds):
                rows.append(row)
                print(" ".join(str(value) for value in row.values()), flush=True)
            write_results("attention", rows)


if __name__ == "__main__":
    main()
