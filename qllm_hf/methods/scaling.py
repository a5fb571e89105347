"""The step that moves magnitude: finds the pairs of a block, chooses a scale for each, moves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..method import AwqOptions, SmoothQuantOptions
from ..plan import Entry
from .awq import search_scale
from .moments import Inputs, Moments
from .objective import Reader
from .pairs import Heads, find_pairs
from .scales import Pair, apply_scale, columns_of
from .smoothquant import smoothing_scale


@dataclass
class Scaled:
    """What was done to a block.

    Attributes:
        factors: name of a linear layer within the block -> what it multiplies its input by, [I].
        skipped: name of a quantized weight within the block -> why no scale could be moved out of its input.
    """

    factors: dict[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def scale_block(
    block: nn.Module,
    run: Callable[[], Tensor],
    entries: dict[str, Entry],
    inputs: Inputs,
    options: AwqOptions | SmoothQuantOptions,
    heads: Heads | None,
    shared: frozenset[str],
    dtypes: dict[str, torch.dtype],
) -> Scaled:
    """Move the scales of a block in float32, and those of its inputs' moments with them.

    Args:
        run: runs the block on a few tokens.
        entries: the quantized weights by their name within the block.
        shared: modules whose weights other blocks use too.
        dtypes: in which dtype the block's parameters will be stored, by name.
    """
    pairs, skipped = find_pairs(block, run, heads, shared, frozenset(entries))
    done = Scaled(skipped={name: reason for name, reason in skipped.items() if name in entries})
    for pair in pairs:
        if isinstance(options, SmoothQuantOptions) and pair.kind != "norm":
            continue  # as published: only what a norm hands out
        quantized = [name for name in pair.consumers if name in entries and name in inputs.moments]
        if not quantized:
            continue
        if pair.kind == "experts":
            (name,) = quantized
            matrices, moments = columns_of(block, name), inputs.of_experts(name)
            each = [
                _choose(pair, [_reader(matrix, one, entries[name])], options)
                for matrix, one in zip(matrices, moments, strict=True)
            ]
            scale = torch.stack(each)
        else:
            readers = [reader for name in quantized for reader in _readers(block, name, inputs, entries[name])]
            scale = _choose(pair, readers, options)
        if bool((scale == 1).all()):
            continue
        stored = _stored_dtype(pair, dtypes)
        moved = apply_scale(block, pair, scale, stored)
        for name in quantized:
            inputs.rescale(name, 1 / moved)
        if pair.kind == "input":
            done.factors[pair.consumers[0].rpartition(".")[0]] = 1 / moved
    return done


def _choose(pair: Pair, readers: list[Reader], options: AwqOptions | SmoothQuantOptions) -> Tensor:
    chosen = [reader for reader in readers if reader.moments.count]
    if not chosen:  # an expert that no token chose
        return torch.ones(int(torch.unique(pair.rows).numel()), device=readers[0].matrix.device)
    if isinstance(options, SmoothQuantOptions):
        return smoothing_scale(pair, chosen, options)
    return search_scale(pair, chosen, options.steps)


def _readers(block: nn.Module, name: str, inputs: Inputs, entry: Entry) -> list[Reader]:
    matrix, moments = columns_of(block, name), inputs.moments[name]
    if isinstance(moments, list):
        return [_reader(one, part, entry) for one, part in zip(matrix, moments, strict=True)]
    return [_reader(matrix, moments, entry)]


def _reader(matrix: Tensor, moments: Moments, entry: Entry) -> Reader:
    assert entry.weight is not None
    return Reader(matrix.detach().float(), moments, entry.weight, entry.activation)


def _stored_dtype(pair: Pair, dtypes: dict[str, torch.dtype]) -> torch.dtype | None:
    if pair.kind == "norm":
        return dtypes.get(f"{pair.producer}.weight")
    return dtypes.get(pair.consumers[0])
