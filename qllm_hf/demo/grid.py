"""What is left of each ability under each scheme, as a grid: of a sweep, or of what the study published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError
from ..evaluation.record import ABILITIES
from ..evaluation.statistics import Estimate
from ..figures.abilities import radars_of
from ..figures.figure import Figure, Missing
from ..page.html import text
from ..published.query import published
from ..results import BASELINE, Results
from ..sweep.table import percent

_RADARS: Final = ("W8", "W4", "W3", "W2", "W4A8", "W4A4", "KV8", "KV4", "KV3", "KV2", "W4KV4")
"""Schemes that get a radar, where there are many."""
# cividis, by tenths: told apart by colour-blind people, and in grey
_COLORS: Final = (
    *("#00224e", "#0b2e63", "#2a3f6d", "#434e6c", "#575d6d", "#6b6d72"),
    *("#7f7c75", "#968c72", "#b0a067", "#ccb652", "#fee838"),
)
_DARK: Final = 6
"""Up to this tenth a colour wants white text."""


@dataclass(frozen=True)
class Grid:
    """A heat map.

    Attributes:
        title: what it shows.
        schemes, abilities: lines and columns.
        cells: {(scheme, ability): part of the float model's score above guessing that is left}.
        note: how to read it.
    """

    title: str
    schemes: tuple[str, ...]
    abilities: tuple[str, ...]
    cells: Mapping[tuple[str, str], Estimate]
    note: str

    def radars(self) -> Figure | Missing:
        """The same as radars, of at most a dozen schemes."""
        shown = [scheme for scheme in self.schemes if len(self.schemes) <= len(_RADARS) or scheme in _RADARS]
        kept = {
            scheme: {name: self.cells[scheme, name] for name in self.abilities if (scheme, name) in self.cells}
            for scheme in shown
        }
        return radars_of({scheme: found for scheme, found in kept.items() if len(found) == len(self.abilities)})


def measured_grid(results: Results) -> Grid:
    """The grid of a sweep.

    Raises:
        ConfigError: nothing in it can be compared with the float model.
    """
    schemes = tuple(scheme for scheme in results.schemes if scheme != BASELINE)
    cells = {(scheme, name): each for scheme in schemes for name, each in results.recovery(scheme).items()}
    if not cells:
        raise ConfigError("nothing in these results can be compared with the float model.")
    note = "Percent of the float model's score above guessing, and its standard error; items compared one by one."
    if results.is_partial:
        note += " Some tasks were asked their first items only."
    return Grid("What is left of each ability", schemes, _columns(cells), cells, note)


def published_grid(model: str) -> Grid:
    """The grid of a model of the study: the mean over an ability's benchmarks.

    Raises:
        ConfigError: the study has no such model.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    schemes: dict[str, None] = {}
    for row in published(model=model, main=True).without("excluded"):
        kept = row.normalised("ours")
        if row.scheme != BASELINE and kept is not None:
            schemes.setdefault(row.scheme)
            found.setdefault((row.scheme, row.ability), {}).setdefault(row.benchmark, []).append(kept)
    cells = {}
    for key, benchmarks in found.items():
        means = [math.fsum(values) / len(values) for values in benchmarks.values()]
        cells[key] = Estimate(max(0.0, math.fsum(means) / len(means)), math.nan)
    if not cells:
        raise ConfigError(f"nothing that was published of {model!r} is above guessing.")
    note = (
        "Percent of the float model's score above guessing: the mean over the benchmarks of an ability. From the study "
        "(arXiv 2402.18158), which gives no errors; a few items more or less right are noise."
    )
    return Grid(f"What was left of {model}", tuple(schemes), _columns(cells), cells, note)


def published_models() -> tuple[str, ...]:
    """The models of the study that lost something in at least three abilities, by name."""
    abilities: dict[str, set[str]] = {}
    for row in published(main=True):
        abilities.setdefault(row.model, set()).add(row.ability)
    names = [name for name, found in abilities.items() if len(found) >= 3]
    return tuple(sorted(names)) or tuple(sorted(abilities))


def grid_html(grid: Grid, chosen: tuple[str, str] = ("", "")) -> str:
    """The grid as a table of buttons: each says in words what its colour means, and the keyboard reaches it."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in grid.abilities)
    lines = ""
    for scheme in grid.schemes:
        cells = "".join(f"<td>{_cell(grid, scheme, name, chosen)}</td>" for name in grid.abilities)
        lines += f'<tr><th scope="row">{text(scheme)}</th>{cells}</tr>'
    return (
        f'<div class="qllm-card"><h3>{text(grid.title)}</h3><p class="qllm-hint">{text(grid.note)} Choose a cell to '
        'see what is behind it.</p><div class="qllm-scroll"><table class="qllm-heat"><thead><tr><td></td>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div></div>"
    )


def _cell(grid: Grid, scheme: str, ability: str, chosen: tuple[str, str]) -> str:
    estimate = grid.cells.get((scheme, ability))
    if estimate is None:
        return '<span class="qllm-cell qllm-none" aria-label="not measured">-</span>'
    tenth = min(10, max(0, round(10 * estimate.value)))
    value, plus_minus, error = percent(estimate).partition("±")
    small = f"<small>±{error}</small>" if plus_minus else ""
    color = "#fff" if tenth <= _DARK else "#000"
    pressed = "true" if (scheme, ability) == chosen else "false"
    label = f"{scheme}, {ability}: {value} percent left{f', plus or minus {error}' if error else ''}"
    return (
        f'<button type="button" class="qllm-cell" style="background:{_COLORS[tenth]};color:{color}" '
        f'data-scheme="{text(scheme)}" data-ability="{text(ability)}" aria-pressed="{pressed}" '
        f'aria-label="{text(label)}">{text(value)}{small}</button>'
    )


def _columns(cells: Mapping[tuple[str, str], Estimate]) -> tuple[str, ...]:
    return tuple(name for name in ABILITIES if any(ability == name for _, ability in cells))
