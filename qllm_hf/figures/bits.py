"""What is lost against the bits that are kept, for weights and for keys and values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..drawing import look
from ..evaluation.record import ABILITIES
from ..evaluation.statistics import Estimate
from ..results import BASELINE, Results
from ..scheme import FLOAT_BITS, Scheme
from ..sweep.table import percent
from .figure import Figure, Missing


@dataclass(frozen=True)
class _Point:
    """One scheme in one panel: its bits, and what is left of each ability."""

    scheme: str
    bits: float
    kept: dict[str, Estimate]


def loss_by_bits(results: Results) -> Figure | Missing:
    """Loss of each ability against stored bits per weight, and against bits of keys and values."""
    title = "What is lost by bits"
    weights, kv = [], []
    for scheme in results.schemes:
        bits = bits_of(scheme)
        if bits is None or scheme == BASELINE:
            continue
        kept = results.recovery(scheme)
        size = results.sizes.get(scheme)
        if bits.kv == FLOAT_BITS and bits.a == FLOAT_BITS:
            weights.append(_Point(scheme, size.bits_per_weight if size else float(bits.w), kept))
        elif bits.w == FLOAT_BITS:
            kv.append(_Point(scheme, float(bits.kv), kept))
    panels = {
        "stored bits per weight, with scales and zero points": sorted(weights, key=lambda point: point.bits),
        "bits of keys and values": sorted(kv, key=lambda point: point.bits),
    }
    panels = {name: points for name, points in panels.items() if len(points) > 1 and any(p.kept for p in points)}
    if not panels:
        return Missing(title, "it needs two schemes that differ in the bits of weights only, or of KV only")
    rows: list[tuple[str, ...]] = [("panel", "scheme", "bits", *ABILITIES)]
    for name, points in panels.items():
        for point in points:
            cells = [percent(point.kept.get(ability)) for ability in ABILITIES]
            rows.append((name, point.scheme, f"{point.bits:.2f}", *cells))
    caption = "Percent of the float model's score above guessing that is lost; error bars are one standard error."
    return Figure("bits", title, caption, tuple(rows), partial(_draw, panels))


def bits_of(label: str) -> Scheme | None:
    """The scheme of a label such as "W3+gptq"; None if it is none."""
    try:
        return Scheme.parse(label.partition("+")[0])
    except ValueError:
        return None


def _draw(panels: Mapping[str, Sequence[_Point]]) -> Any:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(5.2 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        for number, ability in enumerate(ABILITIES):
            there = [point for point in points if ability in point.kept]
            if not there:
                continue
            losses = [100 * (1 - point.kept[ability].value) for point in there]
            errors = [_error(point.kept[ability]) for point in there]
            axis.errorbar(
                [point.bits for point in there],
                losses,
                yerr=errors,
                label=ability,
                capsize=3,
                markersize=5,
                linewidth=1.4,
                **look(number),
            )
        axis.axhline(0, color="#777777", linewidth=1)
        axis.set_xlabel(name)
        axis.set_xticks(sorted({round(point.bits, 2) for point in points}))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("lost, % of the float model")
    axes[-1].legend(fontsize=8)
    return figure


def _error(estimate: Estimate) -> float:
    return 0.0 if math.isnan(estimate.stderr) else 100 * estimate.stderr
