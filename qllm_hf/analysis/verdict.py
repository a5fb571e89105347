"""Which layers bear how many bits, in words: holds, suffers or breaks, and why.

What is judged is the effect of rounding one tensor (`Row.effect`): for weights and inputs the signal to noise ratio in
what the layer puts out, for keys the noise in the logits of attention, for values their own signal to noise ratio.

The limits were set on two trained models, by quantizing one kind of tensor in all layers and looking at the loss. W, KV
with `quantize_`, A with weights at 8 bits, K and V apart by rounding only these; nats per token more than in float:

                 stories260K, 1.82 nats                  reference model, 1.54 nats
    bits       2       3       4      6       8        2       3       4       6       8
    W      4.68    0.97    0.122   0.003   0.001   0.112   0.005   0.001   0.000   0.000
    A      5.50    1.14    0.162   0.011   0.000   1.049  -0.009   0.003   0.000   0.000
    K      2.22    1.38    0.461                   0.330   0.011  -0.001
    V      0.04    0.01   -0.002                  -0.003   0.001   0.001
    KV     2.31    1.48    0.484   0.018   0.000   0.325  -0.001   0.003  -0.001   0.000

The reference model's text is mostly chance, its tasks are not: of their right answers W3 costs up to 11 %, KV3 up to
5 %, W2 and KV2 up to two thirds (README). That is what the study says of 3 and of 2 bits. A loss is known to 0.01.

A limit says nothing about how much a model has to spare, and that differs: at the same 13 to 14 dB, W3 costs
stories260K 1 nat and the reference model 0.01. Small models have less to spare (finding F2), so one may be lost where
all layers suffer and none breaks; and layers add up. Nor does it know which layers matter: an outlier channel that was
planted in what attention reads breaks that layer at A4 (1.5 to 4 dB) in either model, which costs 0.17 to 0.69 nats in
each block of stories260K, and in the reference model 3.2 in the first block and less than 0.05 in every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from .gathering import KINDS, Kind, Row
from .streaming import Summary

Word = Literal["holds", "suffers", "breaks"]
WORDS: tuple[Word, ...] = ("holds", "suffers", "breaks")

_DECIBELS: dict[Kind, tuple[float, float]] = {"W": (15.0, 10.0), "A": (15.0, 10.0), "K": (15.0, 10.0), "V": (12.0, 4.0)}
_NATS = (0.75, 2.0)
_NAMED = 3
_SPREAD = 4.0
_KURTOSIS = 9.0


def limits(row: Row) -> tuple[float, float]:
    """Where a layer still holds, and from where on it breaks: dB, or nats of logits (less is better)."""
    return _NATS if row.measure == "logit_noise" else _DECIBELS[row.kind]


def judge(row: Row) -> dict[int, Word]:
    """{bits: word} of one tensor; empty where it is never quantized."""
    return {bits: _word(row, effect) for bits, effect in row.effect.items()}


def _word(row: Row, effect: float | None) -> Word:
    if effect is None:
        return "holds"
    holds, breaks = limits(row)
    if row.measure == "logit_noise":
        return "holds" if effect <= holds else "breaks" if effect > breaks else "suffers"
    return "holds" if effect >= holds else "breaks" if effect < breaks else "suffers"


def counts(rows: Sequence[Row]) -> dict[Kind, dict[int, dict[Word, int]]]:
    """How many tensors of each kind hold, suffer and break at how many bits; kinds that are there."""
    found: dict[Kind, dict[int, dict[Word, int]]] = {}
    for row in rows:
        for bits, word in judge(row).items():
            of_bits = found.setdefault(row.kind, {}).setdefault(bits, dict.fromkeys(WORDS, 0))
            of_bits[word] += 1
    return {kind: found[kind] for kind in KINDS if kind in found}


def reasons(row: Row) -> list[str]:
    """What makes a tensor hard to round; empty if nothing sticks out.

    Outlying channels cost bits in A, K and V, and in W those that share a group with others.
    """
    summary, found = row.summary, []
    spread = summary.channel_spread
    if spread is None and summary.absmax:
        found.append("most channels are all zero")
    elif spread is not None and spread >= _SPREAD:
        found.append(f"channel {summary.largest_channel} is {spread:.{1 if spread < 10 else 0}f} times the median one")
    if summary.kurtosis is not None and summary.kurtosis >= _KURTOSIS:
        found.append(f"kurtosis {summary.kurtosis:.0f}")
    if row.measure == "logit_noise" and (size := _root_mean_square(summary)) > 3:
        found.append(f"keys of {size:.1f} on average")
    return found


def explain(rows: Sequence[Row]) -> list[str]:
    """Sentences, in the order of kinds and of fewer bits: where they hold, and what is in the way where they do not."""
    said = []
    for kind, by_bits in counts(rows).items():
        of_kind = [row for row in rows if row.kind == kind and row.effect]
        layers = f"all {len(of_kind)} layers" if len(of_kind) > 1 else "the only layer"
        fewer = sorted(by_bits, reverse=True)
        fine = [bits for bits in fewer if by_bits[bits]["holds"] == len(of_kind)]
        if fine:
            said.append(f"{kind}: {_list([str(bits) for bits in fine])} bits hold in {layers}.")
        said += [f"{kind}: at {bits} bits {_what_happens(of_kind, bits)}." for bits in fewer if bits not in fine]
    return said


def _what_happens(rows: list[Row], bits: int) -> str:
    """What to say of rows that do not all hold. The worst are named, with what sticks out in them."""
    parts: list[str] = []
    for word, verb in (("breaks", "break"), ("suffers", "suffer")):
        group = [row for row in rows if judge(row)[bits] == word]
        if not group:
            continue
        group.sort(key=lambda row: _badness(row, bits), reverse=True)
        amount = f"all {len(group)}" if len(group) == len(rows) else f"{len(group)} of {len(rows)}"
        text = f"{amount} {verb if len(group) > 1 else word}"
        if not parts and 2 * len(group) > len(rows):
            text += f", worst {_named(group[0], bits)}"
        elif not parts:
            text += f": {_list([_named(row, bits) for row in group[:_NAMED]], len(group) - _NAMED)}"
        parts.append(text)
    return "; ".join(parts)


def _named(row: Row, bits: int) -> str:
    effect = row.effect[bits]
    unit = "logits off by {:.1f} nats" if row.measure == "logit_noise" else "{:.1f} dB"
    name = "/".join([row.name, *(reader.rpartition(".")[2] for reader in row.readers)])
    return f"{name} ({', '.join([unit.format(effect), *reasons(row)])})"


def _badness(row: Row, bits: int) -> float:
    effect = row.effect[bits]
    if effect is None:
        return float("-inf")
    return effect if row.measure == "logit_noise" else -effect


def _root_mean_square(summary: Summary) -> float:
    return float((summary.std**2 + summary.mean**2) ** 0.5)


def _list(names: list[str], more: int = 0) -> str:
    """`a, b and c`, or `a, b, c and 4 more`."""
    names = [*names, f"{more} more"] if more > 0 else names
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
