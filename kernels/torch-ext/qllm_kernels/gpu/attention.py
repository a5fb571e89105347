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
from .planar import row_words

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BITS = range(2, 9)
LONGEST, MOST_GROUPS = 256, 16
MOST_QUERIES = 512
"""Queries of one key head: with more, unpacking the keys again for every 64 of them takes longer than decoding them."""

_MOST_COLUMNS, _MOST_SPLITS = 64, 128
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
        ValueError: `refuses` says why.
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
            scale,
            softcap or 0.0,
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
    columns = _columns(queries)
    warps = (
        4
        if columns > 16
        else min(4, lanes(_rows(value_dim, value_bits, value_group_size, False, query.dtype), 0) // 16)
    )
    tokens = 64
    programs = batch * heads * -(-queries // columns)
    wanted = _processors(query.device) * (_WARPS_PER_PROCESSOR // warps) // programs
    splits = 1
    while splits < _MOST_SPLITS and 2 * splits <= min(wanted, capacity // (2 * tokens)):
        splits *= 2
    return Config(tokens, splits, warps, 2)


def _columns(queries: int) -> int:
    """Queries of a program: as few as there are, at least as many as a tensor core takes."""
    return int(min(_MOST_COLUMNS, max(8, power_of_two(queries))))


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
