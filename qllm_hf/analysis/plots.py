"""The statistics as two pictures: layer by layer, and the channels of one kind of layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..drawing import COLORS, MARKERS, require_matplotlib, save_picture
from ..errors import CalibrationError
from .gathering import KINDS, Kind, Row
from .noise import BITS
from .verdict import limits

LAYERS_NAME, CHANNELS_NAME = "layers", "channels"
_FIGURES = {"absmax": "AbsMax", "std": "Std", "kurtosis": "Kurtosis\n(normal: 3)"}
_TITLES: dict[Kind, str] = {"W": "W, weights", "A": "A, inputs", "K": "K, keys", "V": "V, values"}
_EFFECTS = {
    "sqnr": "signal / noise\n(dB)",
    "output_sqnr": "signal / noise\nin the output (dB)",
    "logit_noise": "noise in logits\n(nats)",
}
_MOST_COLUMNS = 768


def save_plots(folder: Path, rows: Sequence[Row], title: str, kind_of_layer: str | None = None) -> list[Path]:
    """The files written: layers.png and channels.png, each as .svg too.

    Args:
        title: of the pictures, such as the name of the model.
        kind_of_layer: the layer within a block whose channels are drawn; by default the one with the widest spread.

    Raises:
        MissingExtraError: matplotlib is not installed.
        CalibrationError: no layer is called that.
    """
    require_matplotlib()
    inside = [row for row in rows if row.block is not None]
    pictures = {LAYERS_NAME: layer_picture(inside, title), CHANNELS_NAME: _channels(inside, title, kind_of_layer)}
    return [path for name, figure in pictures.items() for path in save_picture(figure, folder, name)]


def layer_picture(rows: Sequence[Row], title: str) -> Any:
    """A column for each kind of tensor, a line for each layer of a block; below, the effect of bits on the worst."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    lines = len(_FIGURES) + 1
    figure = Figure(figsize=(1.2 + 3.6 * len(kinds), 11), layout="constrained")
    axes = figure.subplots(lines, len(kinds), squeeze=False, sharex="col")
    looks = _looks([_last(row.layer) for row in rows if row.kind == "W"])
    for column, kind in enumerate(kinds):
        of_kind = [row for row in rows if row.kind == kind]
        for line, (name, label) in enumerate(_FIGURES.items()):
            axis = axes[line][column]
            _draw_lines(axis, of_kind, name, looks)
            if column == 0:
                axis.set_ylabel(label)
        axes[0][column].set_title(_TITLES[kind])
        legend = axes[0][column].get_legend_handles_labels()
        if len(legend[0]) > 1:
            axes[0][column].legend(*legend, fontsize=7, ncols=2, framealpha=0.8)
        _draw_effect(axes[-1][column], of_kind)
        axes[-1][column].set_xlabel("decoder block")
        axes[-1][column].xaxis.get_major_locator().set_params(integer=True)
    handles: dict[str, Any] = {}
    for axis in axes[-1]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.suptitle(title)
    return figure


def _looks(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Color and marker of each layer of a block, the same in all columns."""
    return {
        name: {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        for number, name in enumerate(dict.fromkeys(names))
    }


def _draw_lines(axis: Any, rows: Sequence[Row], name: str, looks: Mapping[str, dict[str, str]]) -> None:
    values: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        value = getattr(row.summary, name)
        if value is not None and value > 0:
            label = "/".join([_last(row.layer), *map(_last, row.readers)])
            values.setdefault(label, []).append((row.block or 0, value))
    for label, points in values.items():
        look = looks.get(label.partition("/")[0], {"color": "#444444", "marker": "o"})
        axis.plot(*zip(*points, strict=True), label=label, markersize=4, linewidth=1.2, **look)
    if values:
        found = [value for points in values.values() for _, value in points]
        if max(found) > 20 * min(found):
            axis.set_yscale("log")
    axis.grid(alpha=0.3)


def _draw_effect(axis: Any, rows: Sequence[Row]) -> None:
    """The worst layer of each block at each number of bits, and the limits."""
    judged = [row for row in rows if row.effect]
    if not judged:
        axis.text(0.5, 0.5, "never quantized", ha="center", va="center", transform=axis.transAxes)
        return
    is_nats = judged[0].measure == "logit_noise"
    for number, bits in enumerate(BITS):
        worst: dict[int, float] = {}
        for row in judged:
            effect = row.effect[bits]
            if effect is not None and row.block is not None:
                before = worst.get(row.block, effect)
                worst[row.block] = max(before, effect) if is_nats else min(before, effect)
        if worst:
            axis.plot(
                list(worst),
                list(worst.values()),
                label=f"{bits} bits",
                color=COLORS[number],
                marker=MARKERS[number],
                markersize=4,
                linewidth=1.2,
            )
    holds, breaks = limits(judged[0])
    axis.axhline(holds, color="#444444", linestyle="--", linewidth=1, label="holds to here")
    axis.axhline(breaks, color="#aa0000", linestyle=":", linewidth=1.4, label="breaks from here")
    if is_nats:
        axis.set_yscale("log")
    axis.set_ylabel(_EFFECTS[judged[0].measure], fontsize=9)
    axis.set_title("worst layer of the block", fontsize=9)
    axis.grid(alpha=0.3)


def _channels(rows: Sequence[Row], title: str, layer: str | None) -> Any:
    """A heat map of the channels of one kind of layer: a line for each block, a column for each channel."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    chosen = _of_one_layer(rows, layer)
    most = max(row.summary.channels for row in chosen)
    columns = min(most, _MOST_COLUMNS)
    picture = torch.full((len(chosen), columns), torch.nan)
    for line, row in enumerate(chosen):
        absmax = torch.maximum(row.channel_low.abs(), row.channel_high.abs())
        # several channels share a column where there are more of them than dots: the largest shows
        shown = torch.nn.functional.adaptive_max_pool1d(absmax[None], min(columns, len(absmax)))[0]
        picture[line, : len(shown)] = shown
    figure = Figure(figsize=(10, 2.2 + min(8.0, 0.3 * len(chosen))), layout="constrained")
    axis = figure.subplots()
    known = picture[picture > 0]
    low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)
    norm = LogNorm(max(low, high / 1e4), high) if high > low else None
    extent = (0, most, len(chosen) - 0.5, -0.5)
    image = axis.imshow(picture.numpy(), aspect="auto", interpolation="nearest", norm=norm, extent=extent)
    step = max(1, len(chosen) // 16)
    axis.set_yticks(range(0, len(chosen), step), [str(row.block) for row in chosen[::step]])
    axis.set_ylabel("decoder block")
    axis.set_xlabel("channel" if columns == most else f"channel (largest of {most / columns:.1f} in each column)")
    figure.colorbar(image, ax=axis, label="AbsMax")
    axis.set_title(f"{title}: {_TITLES[chosen[0].kind].split(', ')[1]} of {chosen[0].layer}, each channel", fontsize=10)
    return figure


def _of_one_layer(rows: Sequence[Row], layer: str | None) -> list[Row]:
    """The rows of a layer's inputs in all blocks, or of its weights where inputs were not seen."""
    seen = [row for row in rows if row.kind == "A"] or [row for row in rows if row.kind == "W"]
    if layer is not None:
        found = [row for row in seen if layer in (row.layer, *map(_last, row.readers))]
        if not found:
            names = ", ".join(dict.fromkeys(row.layer for row in seen))
            raise CalibrationError(f"no layer of a block is called {layer!r}. Give one of {names}.")
        return found
    widest = max(seen, key=lambda row: row.summary.channel_spread or 0.0)
    return [row for row in seen if row.layer == widest.layer]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
