"""The tab that says how few bits are enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio

from ..choose import ABILITIES, ANY_DEVICE, DEVICE_NAMES, Form, advice_for, answer_html, evidence_html
from ..host import Host
from .events import LIGHT

BY_SIZE, BY_MODEL = "A size", "A model"
HINT = '<p class="qllm-hint">Fill in what you need; nothing is downloaded for a size, and no weights for a model.</p>'


def build(host: Host) -> None:
    """Put the tab into the page that is being built."""
    with gradio.Row():
        with gradio.Column(scale=2, min_width=300):
            kind = gradio.Radio([BY_SIZE, BY_MODEL], value=BY_SIZE, label="What you have")
            with gradio.Group(visible=True) as by_size:
                params = gradio.Number(7, minimum=0.001, label="Billions of parameters", elem_id="qllm-params")
                moe = gradio.Checkbox(False, label="Mixture of experts")
            with gradio.Group(visible=False) as by_model:
                model = gradio.Dropdown(
                    list(host.offered),
                    value=next(iter(host.offered)),
                    label="Model",
                    allow_custom_value=host.limits.hub,
                )
                measured = gradio.Dropdown(
                    ["", *host.results], value="", label="Own measurements", visible=bool(host.results)
                )
            abilities = gradio.CheckboxGroup(list(ABILITIES), value=list(ABILITIES)[3:4], label="What it must still do")
            with gradio.Row():
                context = gradio.Textbox("4k", label="Tokens of a sequence", info="16k is 16,384", min_width=120)
                batch = gradio.Number(1, minimum=1, precision=0, label="Sequences", info="At once", min_width=120)
            with gradio.Row():
                memory = gradio.Textbox("24GB", label="Memory", info="Empty: no limit", min_width=120)
                tolerance = gradio.Textbox("2%", label="Loss allowed", info="Of the score", min_width=120)
            device = gradio.Dropdown(list(DEVICE_NAMES), value=ANY_DEVICE, label="Device", info="For times")
            ask = gradio.Button("Recommend", variant="primary", elem_id="qllm-recommend")
        with gradio.Column(scale=3, min_width=300):
            answer = gradio.HTML(HINT, elem_id="qllm-advice")
    evidence = gradio.HTML("", elem_id="qllm-evidence")

    def recommending(
        kind: str, params: float, moe: bool, model: str, measured: str, abilities: list[str], context: str, batch: int,
        memory: str, tolerance: str, device: str,
    ) -> Iterator[tuple[Any, Any]]:  # fmt: skip
        is_model = kind == BY_MODEL
        form = Form(
            model=str(model or "") if is_model else "",
            params=params or 0.0,
            moe=moe,
            abilities=tuple(abilities) or ("all",),
            context=context,
            batch=batch or 0,
            memory=memory or "",
            device=device,
            tolerance=tolerance,
            measured=measured if is_model else "",
        )
        try:
            advice = advice_for(host, form)
            yield host.hide(answer_html(form, advice)), gradio.skip()
            yield gradio.skip(), host.hide(evidence_html(host, form, advice))
        except Exception as error:  # the border of the page
            yield host.explain_html(error), ""

    def shown(kind: str) -> tuple[Any, Any]:
        return gradio.update(visible=kind == BY_SIZE), gradio.update(visible=kind == BY_MODEL)

    kind.change(shown, kind, [by_size, by_model], **LIGHT)
    values = [kind, params, moe, model, measured, abilities, context, batch, memory, tolerance, device]
    ask.click(
        recommending, values, [answer, evidence], concurrency_id="advice", concurrency_limit=2,
        api_visibility="private", show_progress="minimal",
    )  # fmt: skip
