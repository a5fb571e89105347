"""The tab that shows what each scheme can still do, down to single items."""

from __future__ import annotations

from typing import Any, Final

import gradio

from ...errors import QllmError
from ..grid import Grid, grid_html, measured_grid, published_grid, published_models
from ..host import Host
from ..items import items_html, published_html, tasks_html, tasks_of
from ..pictures import picture
from .events import LIGHT

PUBLISHED: Final = "Published: "
FIRST: Final = "LLaMA2-7B"
# The buttons are made anew with each grid, so one listener above them hears all.
_CLICKS: Final = """
element.addEventListener('click', (event) => {
  const cell = event.target.closest('button[data-scheme]');
  if (cell) trigger('click', {scheme: cell.dataset.scheme, ability: cell.dataset.ability});
});
"""


def build(host: Host) -> None:
    """Put the tab into the page that is being built."""
    sources = [*host.results, *(PUBLISHED + name for name in published_models())]
    first = next(iter(host.results), PUBLISHED + FIRST)
    source = gradio.Dropdown(sources, value=first, label="Results", elem_id="qllm-source")
    grid = gradio.HTML(_start(host, first), elem_id="qllm-grid", js_on_load=_CLICKS)
    details = gradio.HTML("", elem_id="qllm-details")
    task = gradio.Radio([], label="Items of", visible=False, elem_id="qllm-task")
    items = gradio.HTML("", elem_id="qllm-items")
    with gradio.Accordion("The same as radars", open=False) as radars:
        radar = gradio.HTML("", elem_id="qllm-radar")
    cell = gradio.State(("", ""))

    def showing(source: str) -> tuple[Any, ...]:
        try:
            found = grid_html(_grid(host, source))
        except Exception as error:  # the border of the page
            found = host.explain_html(error)
        return found, "", gradio.update(visible=False), "", ("", ""), gradio.update(open=False), ""

    def drawing(source: str) -> str:
        try:
            return picture(_grid(host, source).radars(), broad=True)
        except Exception as error:  # the border of the page
            return host.explain_html(error)

    def choosing(source: str, event: gradio.EventData) -> tuple[Any, ...]:
        try:
            scheme, ability = str(event.scheme), str(event.ability)
            found = grid_html(_grid(host, source), (scheme, ability))
            if source.startswith(PUBLISHED):
                name = source.removeprefix(PUBLISHED)
                return found, published_html(name, scheme, ability), gradio.update(visible=False), "", (scheme, ability)
            results = host.result(source)
            tasks = tasks_of(results, scheme, ability)
            choice = gradio.update(choices=list(tasks), value=tasks[0], visible=True)
            behind = tasks_html(results, scheme, ability)
            return found, behind, choice, items_html(results, scheme, tasks[0]), (scheme, ability)
        except Exception as error:  # the border of the page
            return gradio.skip(), host.explain_html(error), gradio.update(visible=False), "", ("", "")

    def reading(source: str, task: str, cell: tuple[str, str]) -> str:
        try:
            return items_html(host.result(source), cell[0], task) if task else ""
        except Exception as error:  # the border of the page
            return host.explain_html(error)

    source.change(showing, source, [grid, details, task, items, cell, radars, radar], **LIGHT)
    grid.click(choosing, source, [grid, details, task, items, cell], **LIGHT)
    task.input(reading, [source, task, cell], items, **LIGHT)
    radars.expand(drawing, source, radar, **LIGHT)


def _grid(host: Host, source: str) -> Grid:
    if source.startswith(PUBLISHED):
        return published_grid(source.removeprefix(PUBLISHED))
    return measured_grid(host.result(source))


def _start(host: Host, source: str) -> str:
    """The grid that the page opens with; results that give none do not keep it from opening."""
    try:
        return grid_html(_grid(host, source))
    except QllmError as error:
        return host.explain_html(error)
