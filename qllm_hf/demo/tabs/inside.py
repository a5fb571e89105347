"""The tab that looks at the tensors of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio

from ..host import Host
from ..inside import BITS, GROUPS, histogram, layers, look, round_tensor, rows_html, tensor_names
from ..pictures import picture
from .events import HEAVY

HINT = (
    '<p class="qllm-hint">Weights are read block by block. Of the reference model inputs, keys and values are shown '
    "too.</p>"
)


def build(host: Host) -> None:
    """Put the tab into the page that is being built."""
    with gradio.Row(equal_height=True):
        model = gradio.Dropdown(
            list(host.offered),
            value=next(iter(host.offered)),
            label="Model",
            allow_custom_value=host.limits.hub,
            min_width=280,
        )
        start = gradio.Button("Look inside", variant="primary", elem_id="qllm-look", min_width=160)
    status = gradio.HTML(HINT, elem_id="qllm-inside")
    with gradio.Group(visible=False) as chosen:
        with gradio.Row():
            tensor = gradio.Dropdown([], label="Tensor", elem_id="qllm-tensor", min_width=280)
            bits = gradio.Radio(
                [str(each) for each in BITS], value="4", label="Bits", elem_id="qllm-bits", min_width=280
            )
            group = gradio.Radio(list(GROUPS), value="128", label="Numbers in a group", min_width=280)
        drawn = gradio.HTML("", elem_id="qllm-histogram")
    overview = gradio.HTML("", elem_id="qllm-layers")

    def looking(model: str) -> Iterator[tuple[Any, ...]]:
        keep = gradio.skip()
        try:
            yield '<p class="qllm-hint" role="status">Reading tensors …</p>', keep, keep, keep
            rows = look(host, model)
            names = tensor_names(rows)
            update = gradio.update(choices=list(names), value=names[0])
            yield rows_html(rows), gradio.update(visible=True), update, keep
            yield keep, keep, keep, picture(layers(rows, model), broad=True)
        except Exception as error:  # the border of the page
            yield host.explain_html(error), gradio.update(visible=False), keep, ""

    def rounding(model: str, tensor: str | None, bits: str, group: str) -> str:
        if not tensor:
            return ""
        try:
            return picture(histogram(round_tensor(host, model, tensor, int(bits), GROUPS[group])), broad=True)
        except Exception as error:  # the border of the page
            return host.explain_html(error)

    start.click(looking, model, [status, chosen, tensor, overview], **HEAVY)
    gradio.on(
        [tensor.change, bits.change, group.change], rounding, [model, tensor, bits, group], drawn,
        trigger_mode="always_last", **HEAVY,
    )  # fmt: skip
