"""Inside a model: what its tensors look like, layer by layer, and what rounding does to the numbers of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

import torch
from torch import Tensor

from ..analysis.gathering import Row
from ..analysis.plots import layer_picture
from ..analysis.tensors import measure, weight_matrix
from ..analysis.verdict import explain, judge
from ..builtin import REFERENCE
from ..config import QllmConfig
from ..drawing import COLORS
from ..errors import ConfigError
from ..figures.figure import Figure
from ..loading import check_float, load_tokenizer
from ..methods.calibration import read_calibration
from ..methods.residence import FromDisk
from ..page.html import table, text
from ..plan import make_plan
from ..scheme import ALLOWED_BITS, PER_ROW, Spec
from ..streamed import offloaded
from ..uniform import fake_quantize
from .host import Host

BITS: Final = tuple(reversed(ALLOWED_BITS))
GROUPS: Final = {"32": 32, "64": 64, "128": 128, "whole row": PER_ROW}
"""{name on the page: elements in a group}"""
TEXT: Final = "curriculum"
"""What the reference model reads to show its inputs, keys and values; other models show their weights."""
_SAMPLES, _SEQLEN, _BARS = 4, 128, 160


@dataclass(frozen=True)
class Rounded:
    """One tensor before and after rounding.

    Attributes:
        edges: [N + 1] of the bars.
        before, after: [N], how many numbers are in each.
        sqnr: signal to quantization noise, in dB.
        distinct: different numbers after rounding, all groups together.
        bits_per_element: stored, scales and zero points included.
    """

    name: str
    shape: tuple[int, ...]
    spec: Spec
    edges: Tensor
    before: Tensor
    after: Tensor
    sqnr: float
    distinct: int
    bits_per_element: float


def look(host: Host, model: str) -> tuple[Row, ...]:
    """A row for each tensor of a float model, its weights from disk block by block.

    Raises:
        QllmError: it cannot be loaded, is too large for the page, or is quantized already.
    """
    place = host.model(model)
    check_float(place)
    host.holder.check(place, ("FP16",))
    return _rows(place)


@lru_cache(maxsize=4)
def _rows(place: str) -> tuple[Row, ...]:
    seen = None
    if place == REFERENCE:
        seen = read_calibration(TEXT, load_tokenizer(place), samples=_SAMPLES, seqlen=_SEQLEN)
    with offloaded(place) as source:
        residence = FromDisk(source.blocks.modules, source.weights, source.blocks.name)
        return tuple(measure(source.model, blocks=source.blocks, residence=residence, calibration=seen))


def tensor_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """The weights that can be rounded on the page."""
    return tuple(row.name for row in rows if row.kind == "W")


def round_tensor(host: Host, model: str, name: str, bits: int, group_size: int = 128) -> Rounded:
    """What so many bits do to one weight of a model.

    Raises:
        ConfigError: the model has no such weight.
        SchemeError: the bits or the group cannot be.
        QllmError: as `look`.
    """
    spec = Spec(bits, group_size)
    place = host.model(model)
    check_float(place)
    host.holder.check(place, ("FP16",))
    loaded = host.holder.take(place, "FP16").model
    entries = {entry.name.removesuffix(".weight"): entry for entry in make_plan(loaded, QllmConfig(w=4)).quantized()}
    if name not in entries:
        raise ConfigError(f"this model has no weight {name[:80]!r} that is quantized. Look at the model first.")
    before = weight_matrix(loaded, entries[name]).float().cpu()
    after = fake_quantize(before, spec)
    low, high = float(torch.min(before.min(), after.min())), float(torch.max(before.max(), after.max()))
    edges = torch.linspace(low, high if high > low else low + 1, _BARS + 1)
    noise = float((after - before).square().sum())
    signal = float(before.square().sum())
    return Rounded(
        name=name,
        shape=tuple(before.shape),
        spec=spec,
        edges=edges,
        before=torch.histogram(before.flatten(), edges).hist,
        after=torch.histogram(after.flatten(), edges).hist,
        sqnr=10 * float(torch.log10(torch.tensor(signal / noise))) if noise and signal else float("inf"),
        distinct=len(after.unique()),
        bits_per_element=spec.bits_per_element(before.shape[-1]),
    )


def histogram(found: Rounded) -> Figure:
    """The numbers of a tensor before and after, as a picture."""
    grouped = "each row" if found.spec.group_size == PER_ROW else f"groups of {found.spec.group_size}"
    caption = (
        f"{found.name}, {' x '.join(map(str, found.shape))} numbers: how many lie where, on a logarithmic scale. "
        f"{found.spec.bits} bits in {grouped} leave {found.distinct:,} different numbers in all groups together."
    )
    rows = (
        ("", "value"),
        ("signal to noise", f"{found.sqnr:.1f} dB"),
        ("bits per weight", f"{found.bits_per_element:.2f}"),
        ("different numbers", f"{found.distinct:,}"),
        ("smallest and largest", f"{float(found.edges[0]):.4g} to {float(found.edges[-1]):.4g}"),
    )
    title = f"{found.name} at {found.spec.bits} bits: {found.sqnr:.1f} dB"
    return Figure("histogram", title, caption, rows, partial(_draw, found, title))


def rows_html(rows: Sequence[Row]) -> str:
    """The verdict in sentences, and a line for each tensor."""
    shown = [["kind", "tensor", "AbsMax", "std", "kurtosis", "4 bits", "3 bits", "2 bits"]]
    for row in rows:
        found, words = row.summary, judge(row)
        kurtosis = "-" if found.kurtosis is None else f"{found.kurtosis:.3g}"
        judged = [words.get(bits, "-") for bits in (4, 3, 2)]
        shown.append([row.kind, row.name, f"{found.absmax:.3g}", f"{found.std:.3g}", kurtosis, *judged])
    said = "".join(f"<li>{text(sentence)}</li>" for sentence in explain(rows))
    note = "W weights, A inputs, K keys, V values. Kurtosis is 3 for a normal distribution; more means outliers."
    return (
        f'<div class="qllm-card"><h3>What the layers bear</h3><ul>{said}</ul></div>'
        f"<details><summary>Every tensor</summary>{table(shown, caption=note)}</details>"
    )


def layers(rows: Sequence[Row], model: str) -> Figure:
    """The statistics over the blocks, as a picture."""
    caption = (
        "Largest magnitude, spread and tails of each tensor by block; below, what rounding does to the worst layer."
    )
    kinds = tuple(dict.fromkeys(row.kind for row in rows))
    counts = (("kind", "tensors"), *((kind, str(sum(row.kind == kind for row in rows))) for kind in kinds))
    inside = [row for row in rows if row.block is not None]
    return Figure("layers", f"Tensors of {model}", caption, counts, partial(layer_picture, inside, model))


def _draw(found: Rounded, title: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(8, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    width = float(found.edges[1] - found.edges[0])
    places = (found.edges[:-1] + width / 2).tolist()
    sides = ((above, found.before, "before", COLORS[0]), (below, found.after, "after", COLORS[1]))
    for axis, counts, name, color in sides:
        axis.bar(places, counts.tolist(), width, color=color)
        axis.set_yscale("log")
        axis.set_ylabel(f"numbers {name}")
        axis.grid(alpha=0.3)
    below.set_xlabel("value")
    figure.suptitle(title, fontsize=10)
    return figure
