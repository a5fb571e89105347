"""Bytes: how they grow with the length of a text, and what the same bytes buy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..drawing import look
from ..evaluation.statistics import Estimate
from ..reporting.text import bytes_text
from ..results import BASELINE, Results, Size
from ..sweep.table import percent
from .figure import Figure, Missing

LENGTHS = tuple(2**power for power in range(7, 18))
"""128 to 131,072 tokens."""
SAME = 0.15
"""Sizes that differ by less than this part are called even."""


def memory_curves(results: Results) -> Figure | Missing:
    """Weights and KV cache together, by tokens in the cache."""
    title = "Memory by length"
    sizes = {scheme: size for scheme in results.schemes if (size := results.sizes.get(scheme)) and size.kv}
    if not sizes:
        return Missing(title, "the folder does not say what schemes take, or the model keeps no KV cache")
    return size_curves(sizes, title)


def size_curves(sizes: Mapping[str, Size], title: str = "Memory by length") -> Figure:
    """The same for sizes that come from elsewhere, {scheme: what it takes}; each knows its KV cache."""
    shown = (LENGTHS[0], 1024, 4096, 16_384, LENGTHS[-1])
    rows = [("scheme", "weights", *(f"{tokens:,} tokens" for tokens in shown))]
    for scheme, size in sizes.items():
        rows.append((scheme, bytes_text(size.weight_bytes), *(bytes_text(_total(size, tokens)) for tokens in shown)))
    caption = (
        "Bytes of all weights and of the KV cache of one sequence; the steeper a line, the more of it is cache. Eight "
        "sequences of n tokens take what one of 8 n does, unless a sliding window forgets."
    )
    return Figure("memory", title, caption, tuple(rows), partial(_draw_curves, sizes))


def even_storage(results: Results) -> Figure | Missing:
    """Schemes that take about the same bytes, side by side, where the cache is as large as the weights."""
    title = "What the same bytes buy"
    base = results.sizes.get(BASELINE)
    if base is None or not base.kv_bytes_per_token:
        return Missing(title, f"the folder does not say what {BASELINE} takes, or the model keeps no KV cache")
    tokens = round(base.weight_bytes / base.kv_bytes_per_token)
    known = [
        (_whole_cache(size, tokens), scheme, _overall(results, scheme))
        for scheme in results.schemes
        if (size := results.sizes.get(scheme)) is not None and scheme != BASELINE
    ]
    points = sorted((total, scheme, kept) for total, scheme, kept in known if kept is not None)
    groups: list[list[tuple[int, str, Estimate]]] = []
    for point in points:
        if groups and point[0] <= groups[-1][0][0] * (1 + SAME):
            groups[-1].append(point)
        else:
            groups.append([point])
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return Missing(title, f"no two schemes take the same bytes within {SAME:.0%}")
    rows = [("about", "scheme", "bytes", "left, mean of abilities")]
    for group in groups:
        rows += [(bytes_text(group[0][0]), scheme, bytes_text(total), percent(kept)) for total, scheme, kept in group]
    caption = (
        f"Weights and KV cache of {tokens:,} cached tokens, where the float model's cache is as large as its weights: "
        f"groups of schemes whose bytes differ by less than {SAME:.0%}. Mean over abilities of the percent of the "
        "float model's score above guessing; error bars are one standard error."
    )
    return Figure("even_storage", title, caption, tuple(rows), partial(_draw_groups, groups))


def _total(size: Size, tokens: int) -> int:
    return size.weight_bytes + (size.kv_bytes(tokens) or 0)


def _whole_cache(size: Size, tokens: int) -> int:
    """Bytes where all tokens are kept: as many short sequences, which no window cuts."""
    return size.weight_bytes + tokens * (size.kv_bytes_per_token or 0)


def _overall(results: Results, scheme: str) -> Estimate | None:
    found = list(results.recovery(scheme).values())
    if not found:
        return None
    error = math.sqrt(math.fsum(0.0 if math.isnan(each.stderr) else each.stderr**2 for each in found)) / len(found)
    return Estimate(math.fsum(each.value for each in found) / len(found), error)


def _draw_curves(sizes: Mapping[str, Size]) -> Any:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import LogLocator

    figure = Canvas(figsize=(8, 4.8), layout="constrained")
    axis = figure.subplots()
    alike: dict[tuple[int, ...], list[str]] = {}  # bits of activations change no bytes: one line for several schemes
    for scheme, size in sizes.items():
        alike.setdefault(tuple(_total(size, tokens) for tokens in LENGTHS), []).append(scheme)
    for number, (totals, schemes) in enumerate(alike.items()):
        axis.plot(LENGTHS, totals, label=", ".join(schemes), markersize=4, linewidth=1.3, **look(number))
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(LENGTHS, [f"{tokens // 1024}k" if tokens >= 1024 else str(tokens) for tokens in LENGTHS])
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(lambda value, _: bytes_text(float(f"{value:.3g}")).replace(".00", ""))
    axis.yaxis.set_minor_formatter("")
    axis.set_xlabel("tokens in the cache")
    axis.set_ylabel("weights + KV cache")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _draw_groups(groups: list[list[tuple[int, str, Estimate]]]) -> Any:
    from matplotlib.figure import Figure as Canvas

    bars = sum(map(len, groups))
    figure = Canvas(figsize=(max(5.0, 1.5 + 0.55 * (bars + len(groups))), 4), layout="constrained")
    axis = figure.subplots()
    place, ticks, names = 0.0, [], []
    for number, group in enumerate(groups):
        begin = place
        for _, scheme, kept in group:
            axis.bar(
                place, 100 * kept.value, 0.8, yerr=100 * kept.stderr, capsize=3, color=look(number)["color"], alpha=0.85
            )
            ticks.append(place)
            names.append(scheme)
            place += 1
        axis.text((begin + place - 1) / 2, 106, bytes_text(group[0][0]), ha="center", fontsize=9)
        place += 0.7
    axis.axhline(100, color="#777777", linewidth=1)
    axis.set_ylim(0, 115)
    axis.set_xticks(ticks, names, rotation=50, ha="right", fontsize=8)
    axis.set_ylabel("left, % of the float model")
    axis.grid(axis="y", alpha=0.3)
    return figure
