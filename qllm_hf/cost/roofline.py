"""The least time that a forward can take on a device: it must read its bytes, and do its operations.

A bound, and no prediction: a real program reads some bytes twice, waits, starts kernels, and unpacks weights. With
both efficiencies at 1 no program is faster than this. Weights of fewer bits are unpacked on the way, so their products
run in the float dtype; inputs of at most 8 bits run as 8-bit integers where the device can. Attention, whose keys and
values are unpacked too, always runs in the float dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .devices import Device
from .model import KvGroup, ModelCost, check_size

_PER_PRODUCT = 2
"""Operations of a multiply-add."""


@dataclass(frozen=True)
class Efficiency:
    """The part of a device's peaks that is reached, above 0 and at most 1. Ones make a bound.

    Attributes:
        bandwidth: of the bytes per second.
        compute: of the operations per second.

    Raises:
        ConfigError: a part that cannot be.
    """

    bandwidth: float = 1.0
    compute: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("bandwidth", self.bandwidth), ("compute", self.compute)):
            if not 0 < value <= 1:
                raise ConfigError(f"{name}={value!r}: give the part of the peak that is reached, above 0, at most 1.")


PEAK = Efficiency()


@dataclass(frozen=True)
class Ratios:
    """How many times faster a scheme is bound to be than another; above 1 is faster."""

    prefill: float
    decode: float
    end_to_end: float


def prefill_seconds(cost: ModelCost, device: Device, batch: int, tokens: int, efficiency: Efficiency = PEAK) -> float:
    """The least seconds for reading a prompt of `tokens` tokens in each of `batch` sequences.

    The output head is asked for the last token only. Keys and values are written once.

    Raises:
        ConfigError: batch or tokens is no positive number, or no rate of the device is known.
        ModelError: nothing is known about the cache of this architecture.
    """
    moved = _weight_bytes(cost, batch * tokens) + cost.kv_bytes(batch, tokens) + batch * cost.state_bytes
    work = cost.work
    pairs = sum(group.products_per_pair * _causal_pairs(group, tokens) for group in cost.kv_groups)
    in_float = batch * (tokens * work.float_products + work.head_products + pairs)
    return _seconds(device, moved, in_float, batch * tokens * work.integer_products, efficiency)


def decode_seconds(cost: ModelCost, device: Device, batch: int, tokens: int, efficiency: Efficiency = PEAK) -> float:
    """The least seconds for one more token in each of `batch` sequences that have `tokens` tokens.

    Of a mixture of experts, only those are read that some token of the batch is expected to go to.

    Raises:
        ConfigError, ModelError: as `prefill_seconds`.
    """
    # states are read and written again; keys and values are read
    moved = _weight_bytes(cost, batch) + cost.kv_bytes(batch, tokens) + 2 * batch * cost.state_bytes
    work = cost.work
    pairs = sum(group.products_per_pair * group.seen(tokens + 1) for group in cost.kv_groups)
    in_float = batch * (work.float_products + work.head_products + pairs)
    return _seconds(device, moved, in_float, batch * work.integer_products, efficiency)


def ratios(
    cost: ModelCost,
    baseline: ModelCost,
    device: Device,
    batch: int,
    tokens: int,
    output: int = 32,
    efficiency: Efficiency = PEAK,
) -> Ratios:
    """How many times faster than a baseline, usually the float model, a scheme's bounds are.

    End to end is a prompt of `tokens` tokens and `output` new ones, at the cache of half of them.

    Raises:
        ConfigError, ModelError: as `prefill_seconds`.
    """
    check_size(batch, output)
    middle = tokens + output // 2
    prefill, before = (prefill_seconds(each, device, batch, tokens, efficiency) for each in (cost, baseline))
    decode, decode_before = (decode_seconds(each, device, batch, middle, efficiency) for each in (cost, baseline))
    return Ratios(
        prefill=before / prefill,
        decode=decode_before / decode,
        end_to_end=(before + output * decode_before) / (prefill + output * decode),
    )


def expected_experts(experts: int, per_token: int, tokens: int) -> float:
    """How many of `experts` experts some of `tokens` tokens go to, if each token draws `per_token` of them evenly.

    Real routers are less even, and reach fewer.
    """
    return experts * (1 - (1 - per_token / experts) ** tokens)


def _weight_bytes(cost: ModelCost, tokens: int) -> float:
    """Bytes of weights that a forward of so many tokens reads: no looked-up rows, and no experts without a token."""
    work = cost.work
    always = cost.weight_bytes - work.lookup_bytes - work.expert_bytes
    if not work.experts:
        return always
    return always + work.expert_bytes * expected_experts(work.experts, work.experts_per_token, tokens) / work.experts


def _causal_pairs(group: KvGroup, tokens: int) -> int:
    """Pairs of a token and one that it sees, itself among them: all before it, or those in its window."""
    width = group.seen(tokens)
    return width * (width + 1) // 2 + (tokens - width) * width


def _seconds(device: Device, moved: float, in_float: float, in_integer: float, efficiency: Efficiency) -> float:
    found = []
    if device.bandwidth is not None:
        found.append(moved / (device.bandwidth * efficiency.bandwidth))
    if device.float_rate is not None:
        seconds = _PER_PRODUCT * (
            in_float / device.float_rate + in_integer / (device.integer_rate or device.float_rate)
        )
        found.append(seconds / efficiency.compute)
    if not found:
        raise ConfigError(f"neither bandwidth nor rates of {device.name} are known. Name a device of the table.")
    return max(found)
