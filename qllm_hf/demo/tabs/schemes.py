"""A field for a scheme, chosen or typed, with a line below that says at every key what it means or why it is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import gradio

from ..conversation import scheme_note
from .events import LIGHT

# Answers can overtake each other, and only that to the last key counts.
_AS_TYPED: Final = """
let last = 0;
document.addEventListener('input', async (event) => {
  if (!event.target.closest || !event.target.closest('#' + props.field)) return;
  const mine = ++last;
  const note = await server.explain(event.target.value);
  if (mine === last) props.value = note;
});
"""


def explain(typed: object) -> str:
    """What was typed, explained; whatever a browser sends."""
    return scheme_note(str(typed))


def scheme_field(label: str, value: str, choices: Sequence[str], name: str) -> Any:
    """The field; its line follows it.

    Args:
        name: of the element, once on the page.
    """
    field = gradio.Dropdown(
        list(choices),
        value=value,
        label=label,
        info="Choose, or type bits such as W3KV2 or W4g32",
        allow_custom_value=True,
        elem_id=name,
    )
    note = gradio.HTML(scheme_note(value), server_functions=[explain], js_on_load=_AS_TYPED, field=name)
    field.change(explain, field, note, **LIGHT)
    return field
