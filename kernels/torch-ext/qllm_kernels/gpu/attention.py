"""Attention straight on packed keys and values, for one or a few new tokens: decoding, and short pieces of a prompt.

    out = softmax(cap(scale q k') + mask) v        keys and values as rows | codes | scales | zero points |

The history is cut into stretches that many programs read at the same time (`attention_split`); a second kernel joins
them (`attention_merge`). Every row is read once for all queries of its head, and nothing of the size of the history is
written. The number of stretches depends on the room there is for tokens and not on their number, so that both kernels
can be part of a CUDA graph while the history grows: how many tokens count is read on the device (`tokens`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from . import INTERPRETED
from .attention_merge import merge_stretches
from .attention_split import attend_stretch, power_of_two
from .attention_tiles import Rows, groups, is_planar, lanes
from .gate import Gate
from .planar import row_words

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BITS = range(2, 9)
LONGEST, MOST_GROUPS = 256, 16
MOST_QUERIES = 128
"""Queries of one key head: with more, to decode keys once takes less than to unpack them again for every 16 queries."""

_MOST_SPLITS = 128
_WARPS_PER_PROCESSOR = 16
_PROCESSORS = 132  # of an H200, where there is no GPU to ask


class Config(NamedTuple):
    """How the work is cut: tokens of a tile, stretches of the history (a power of two), and the compiler's options."""

    BLOCK_T: int
    SPLITS: int
    num_warps: int
    num_stages: int


def refuses(
    query: Tensor,
    key_rows: Tensor,
    value_rows: Tensor,
    *,
    key_bits: int,
    value_bits: int,
    group_size: int,
    symmetric: bool,
    mask: Tensor | None = None,
    tokens: Tensor | None = None,
    value_dim: int | None = None,
    value_group_size: int | None = None,
) -> str | None:
    """Why `attend` cannot take these, or None. What the other arguments say makes no difference."""
    if query.dtype not in TYPES:
        return f"queries of {_name(query.dtype)}: takes float32, bfloat16 and float16"
    if not INTERPRETED and not query.is_cuda:
        return "it takes tensors on a GPU"
    if query.dim() != 4 or key_rows.dim() != 4 or value_rows.dim() != 4:
        return "it takes queries [B, Hq, Tq, D] and rows [B, H, T, R]"
    batch, heads, count, dim = query.shape
    if key_rows.shape[:3] != value_rows.shape[:3] or key_rows.shape[0] != batch or heads % max(key_rows.shape[1], 1):
        return f"rows {list(key_rows.shape)} and {list(value_rows.shape)} are not those of queries {list(query.shape)}"
    if heads and heads // key_rows.shape[1] * count > MOST_QUERIES:
        return f"more than {MOST_QUERIES} queries of one key head"
    for rows, width, bits, group in (
        (key_rows, dim, key_bits, group_size),
        (value_rows, value_dim or dim, value_bits, value_group_size or group_size),
    ):
        reason = _refuses_rows(rows, width, bits, group, symmetric, query.dtype)
        if reason is not None:
            return reason
    if mask is not None and mask.dtype not in TYPES and mask.dtype != torch.bool:
        return f"a mask of {_name(mask.dtype)}: takes flags, float32, bfloat16 and float16"
    if tokens is not None and (tokens.dtype not in (torch.int32, torch.int64) or tokens.numel() not in (1, batch)):
        return "tokens are one integer, or one for each sequence, of 32 or 64 bits"
    return None


def _refuses_rows(
    rows: Tensor, dim: int, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype
) -> str | None:
    if rows.dtype != torch.int16 or rows.stride(-1) != 1:
        return "rows are contiguous words of int16"
    if bits not in BITS:
        return f"{bits} bits: takes 2 to 8"
    if group_size < 1 and group_size != -1:
        return f"group_size={group_size}: takes positive ones, and -1 for a row"
    if not 0 < dim <= LONGEST:
        return f"vectors of {dim} numbers: takes up to {LONGEST}"
    count = groups(_rows(dim, bits, group_size, symmetric, dtype))
    if count > MOST_GROUPS:
        return f"more than {MOST_GROUPS} groups of a row"
    words = row_words(dim, bits) + count * dtype.itemsize // 2 + (0 if symmetric else -(-count // 2))
    if rows.shape[-1] != words:
        return f"rows of {rows.shape[-1]} words: {words} hold vectors of {dim}"
    return None


def attend(
    query: Tensor,
    key_rows: Tensor,
    value_rows: Tensor,
    *,
    key_bits: int,
    value_bits: int,
    group_size: int,
    symmetric: bool,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    tokens: Tensor | None = None,
    window: int | None = None,
    value_dim: int | None = None,
    value_group_size: int | None = None,
    config: Config | None = None,
) -> Tensor:
    """Attention of queries [B, Hq, Tq, D] over keys and values in rows int16 [B, H, T, R]: [B, Hq, Tq, value_dim].

    The result has the dtype of the queries, which is also that of the scales in the rows. Query head h reads key head
    h // (Hq // H). A query that sees nothing gets zeros.

    Args:
        query: its last dimension is contiguous, or it is copied.
        key_rows, value_rows: may be a part of a larger buffer; the words of a row are contiguous.
        key_bits, value_bits: 2 to 8.
        group_size: numbers that share a scale, along a vector; -1 for the whole vector.
        symmetric: there are no zero points.
        scale: of the scores.
        mask: added to scores (float), or True where a key is seen; it broadcasts to [B, Hq, Tq, T].
        causal: query number t sees the keys 0 .. t only.
        softcap: scores become softcap * tanh(scores / softcap) before the mask.
        sinks: [Hq], one more score per head that takes its share of the softmax and has no value.
        tokens: int32 or int64, [] or [1] or [B], on the device: how many of the T tokens there are. None for all.
        window: a query sees this many keys, up to its own. Queries are the last of the tokens, or if causal, the first.
        value_dim, value_group_size: those of values, where they are not as keys.
        config: how the work is cut.

    Raises:
        ValueError: `refuses` says why, or there is no such configuration.
    """
    reason = refuses(
        query, key_rows, value_rows, key_bits=key_bits, value_bits=value_bits, group_size=group_size,
        symmetric=symmetric, mask=mask, tokens=tokens, value_dim=value_dim, value_group_size=value_group_size,
    )  # fmt: skip
    if reason is not None:
        raise ValueError(reason)
    batch, query_heads, count, dim = query.shape
    heads, capacity = key_rows.shape[1:3]
    keys = _rows(dim, key_bits, group_size, symmetric, query.dtype)
    values = _rows(value_dim or dim, value_bits, value_group_size or group_size, symmetric, query.dtype)
    out = query.new_empty(batch, query_heads, count, values.dim)
    if out.numel() == 0:
        return out
    if query.stride(-1) != 1:
        query = query.contiguous()
    if scale < 0:  # the kernel looks for the largest product
        query, scale = -query, -scale
    group = query_heads // heads
    shared, mask_strides = False, (0, 0, 0, 0)
    if mask is not None and capacity:
        mask = mask.expand(batch, query_heads, count, capacity)
        # whether all queries of a program have the same mask, as while decoding
        shared = (group == 1 or mask.stride(1) == 0) and (count == 1 or mask.stride(2) == 0)
        if not shared:
            mask = _in_float32(mask)
        elif mask.dtype == torch.bool:
            mask = mask.view(torch.uint8)
        mask_strides = mask.stride()
    columns = _columns(group * count)
    config = config or default_config(
        query, heads, capacity, value_bits=value_bits, value_dim=values.dim, value_group_size=values.group
    )
    if config.BLOCK_T < 16 or any(size < 1 or size & (size - 1) for size in (config.BLOCK_T, config.SPLITS)):
        raise ValueError(f"{config}: takes powers of two, and tiles of 16 tokens or more")
    queries = batch * query_heads * count
    partial_values = query.new_empty((queries, config.SPLITS, values.dim), dtype=torch.float32)
    partial_maxima, partial_sums = query.new_empty((2, queries, config.SPLITS), dtype=torch.float32)
    with torch.cuda.device_of(query):
        attend_stretch[(batch * heads, config.SPLITS, -(-group * count // columns))](
            query,
            key_rows,
            value_rows,
            mask if capacity else None,
            tokens,
            partial_values,
            partial_maxima,
            partial_sums,
            capacity,
            heads,
            group,
            count,
            *query.stride()[:3],
            *key_rows.stride()[:2],
            *value_rows.stride()[:2],
            *mask_strides,
            0 if tokens is None or tokens.numel() == 1 else tokens.stride(0),
            window or 0,
            float(scale),
            float(softcap or 0.0),
            KEYS=keys,
            KEY_STRIDE=key_rows.stride(2),
            VALUES=values,
            VALUE_STRIDE=value_rows.stride(2),
            DTYPE=TYPES[query.dtype],
            CAUSAL=causal,
            WINDOW=window is not None,
            SOFTCAP=softcap is not None,
            SHARED=shared,
            SHORT=capacity < config.BLOCK_T,
            SPLITS=config.SPLITS,
            BLOCK_T=config.BLOCK_T,
            BLOCK_M=columns,
            WARPS=min(config.num_warps, config.BLOCK_T // 16),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        block = min(power_of_two(values.dim), max(16, 4096 // config.SPLITS))
        merge_stretches[(queries, -(-values.dim // block))](
            out,
            partial_values,
            partial_maxima,
            partial_sums,
            None if sinks is None else sinks.contiguous(),
            query_heads,
            count,
            DIM=values.dim,
            SPLITS=config.SPLITS,
            BLOCK_D=block,
            num_warps=4,
        )
    return out


def _in_float32(mask: Tensor) -> Tensor:
    """What a mask adds, as large as before it was expanded: Triton handles a tile of smaller numbers badly."""
    compact = mask
    for dim, stride in enumerate(mask.stride()):
        if stride == 0:
            compact = compact.narrow(dim, 0, 1)
    if mask.dtype == torch.bool:
        return torch.where(compact, 0.0, -torch.inf).float().expand_as(mask)
    return compact.float().expand_as(mask)


def default_config(
    query: Tensor, heads: int, capacity: int, *, value_bits: int, value_dim: int, value_group_size: int
) -> Config:
    """A configuration for queries [B, Hq, Tq, D], `heads` key heads and room for `capacity` tokens, untuned.

    Warps lie along a tile of values, 16 lanes each, so that none unpacks what another does. Stretches are so many that
    every processor has enough warps to wait for memory, and not so short that starting and joining them takes longer.
    """
    batch, query_heads, count, _ = query.shape
    queries = query_heads // heads * count
    values = _rows(value_dim, value_bits, value_group_size, False, query.dtype)
    columns = _columns(queries)
    warps = min(4, lanes(values, 0) // 16)
    if columns > 8:
        warps = max(warps, 4 if values.dim > 128 else 2)
    # one warp has all weighted values in its registers, and weights of several groups besides
    full = warps == 1 and (groups(values) > 2 or values.bits == 8 or values.dim > 128)
    tokens = 32 if full or query.dtype == torch.float32 else 64
    programs = batch * heads * -(-queries // columns)
    wanted = _processors(query.device) * (_WARPS_PER_PROCESSOR // warps) // max(programs, 1)
    splits = 1
    while splits < _MOST_SPLITS and 2 * splits <= min(wanted, capacity // (2 * tokens)):
        splits *= 2
    return Config(tokens, splits, warps, 2)


def _columns(queries: int) -> int:
    """Queries of a program: as many as there are, at least what a tensor core takes, at most what registers hold."""
    return int(min(16, max(8, power_of_two(queries))))


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _PROCESSORS


@functools.cache
def _rows(dim: int, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype) -> Rows:
    group = min(group_size, dim) if group_size > 0 else dim
    planar = dtype != torch.float32 and is_planar(dim, bits, group)
    return Rows(dim, bits, group, symmetric, planar)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gate(
    name: str,
    bits: int,
    group_size: int,
    budget: float | None,
    dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    count: int = 1,
    mask: str | None = None,
) -> Gate:
    """Four queries of a key head and `count` positions, over a long history."""
    kind = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    rows = _rows(dim, bits, group_size, False, dtype)
    query = torch.empty((1, 32, count, dim), dtype=dtype, device="meta")
    config = default_config(query, 8, 1 << 15, value_bits=bits, value_dim=dim, value_group_size=rows.group)
    pointers = {"query": kind, "keys": "i16", "values": "i16", "tokens": "i32"}
    pointers |= dict.fromkeys(("partial_values", "partial_maxima", "partial_sums"), "fp32")
    pointers |= {} if mask is None else {"mask": mask}
    sizes = "capacity heads group query_batch query_head query_position key_batch key_head value_batch value_head"
    strides = "mask_batch mask_head mask_position mask_token tokens_batch window"
    stride = row_words(dim, bits) + groups(rows) * dtype.itemsize // 2 + -(-groups(rows) // 2)
    return Gate(
        name,
        attend_stretch,
        {
            **{pointer: f"*{type}" for pointer, type in pointers.items()},
            **dict.fromkeys([*sizes.split(), *strides.split(), *(["count"] if count > 1 else [])], "i32"),
            **dict.fromkeys(("scale", "softcap"), "fp32"),
        },
        {
            **({} if count > 1 else {"count": 1}),  # as Triton compiles it for an argument of 1
            **({} if mask else {"mask": None}),
            "KEYS": rows,
            "KEY_STRIDE": stride,
            "VALUES": rows,
            "VALUE_STRIDE": stride,
            "DTYPE": TYPES[dtype],
            "CAUSAL": False,
            "WINDOW": False,
            "SOFTCAP": False,
            "SHARED": mask != "fp32",
            "SHORT": False,
            "SPLITS": config.SPLITS,
            "BLOCK_T": config.BLOCK_T,
            "BLOCK_M": _columns(4 * count),
            "WARPS": min(config.num_warps, config.BLOCK_T // 16),
        },
        elements=2 * config.BLOCK_T * dim,
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
        expects=None if dtype == torch.float32 else "HMMA",
        budget=budget,
        wide=False,  # rows begin at any word
        divisible=tuple(name for name in sizes.split() if name not in ("heads", "group")),
    )


# The budget is what memory leaves time for, or what is reached where that is more.
GATES = (
    _gate("KV8 g128", 8, 128, 7.8),
    _gate("KV8 g64", 8, 64, 7.8),
    _gate("KV4 g128", 4, 128, 3.9),
    _gate("KV4 g64", 4, 64, 3.9),
    _gate("KV4 g32", 4, 32, 3.9),
    _gate("KV4 g64 fp16", 4, 64, 3.9, dtype=torch.float16),
    _gate("KV4 g64, mask of flags", 4, 64, 3.9, mask="u8"),
    _gate("KV4 g64, mask of each head", 4, 64, 3.9, mask="fp32"),
    _gate("KV4 g64, head dim 64", 4, 64, 3.9, dim=64),
    _gate("KV4 g128, head dim 256", 4, 128, 3.9, dim=256),
    _gate("KV4 g80, head dim 80", 4, 80, 5.0, dim=80),
    _gate("KV4 g64, 8 positions", 4, 64, None, count=8),
    _gate("KV3 g128", 3, 128, 2.9),
    _gate("KV3 g64", 3, 64, 2.9),
    _gate("KV2 g128", 2, 128, 1.95),
    _gate("KV2 g64", 2, 64, 2.1),
    _gate("KV2 g64 fp16", 2, 64, 2.5, dtype=torch.float16),
    _gate("KV2 g32", 2, 32, 2.9),
    _gate("KV8 g64, mask of flags", 8, 64, 7.8, mask="u8"),
    _gate("KV3 g64, mask of flags", 3, 64, 3.1, mask="u8"),
    _gate("KV2 g64, mask of flags", 2, 64, 2.45, mask="u8"),
    _gate("KV6 g64", 6, 64, 5.8),
    _gate("KV4 g25, head dim 100", 4, 25, None, dim=100),
    _gate("KV4 g64 fp32", 4, 64, None, dtype=torch.float32),
    Gate(
        "stretches of 128 numbers",
        merge_stretches,
        {
            **dict.fromkeys(("out", "sinks"), "*bf16"),
            **dict.fromkeys(("partial_values", "partial_maxima", "partial_sums"), "*fp32"),
            **dict.fromkeys(("heads", "count"), "i32"),
        },
        {"DIM": 128, "SPLITS": 128, "BLOCK_D": 32},
        wide=False,
    ),
)
