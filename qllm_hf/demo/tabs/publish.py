"""The tab that shows a model card and the plan of a push, and pushes with a visitor's own token."""

from __future__ import annotations

from collections.abc import Iterator

import gradio

from ...page.html import text
from ..host import Host
from ..publish import Wish, preview, preview_html, publish
from .compare import SCHEMES
from .events import HEAVY
from .schemes import scheme_field

HINT = (
    '<p class="qllm-hint">Packs the model, writes its card with what was measured, and shows what would be sent. '
    "Nothing leaves this page before you push.</p>"
)


def build(host: Host) -> None:
    """Put the tab into the page that is being built."""
    with gradio.Row():
        with gradio.Column(scale=2, min_width=300):
            model = gradio.Dropdown(
                list(host.offered),
                value=next(iter(host.offered)),
                label="Model",
                allow_custom_value=host.limits.hub,
            )
            choices = [each for each in SCHEMES if each != "FP16"]
            scheme = scheme_field("Scheme", "W4KV8", choices, "qllm-publish-scheme")
            repo = gradio.Textbox(
                "my-name/my-model-w4kv8", label="Repository", info="owner/name on the Hub", max_length=120,
                elem_id="qllm-repo",
            )  # fmt: skip
            licence = gradio.Textbox(
                "",
                label="Licence",
                info="Only where the base model's card names none, such as apache-2.0",
                max_length=60,
            )
            results = gradio.Dropdown(
                ["", *host.results], value="", label="Measured results", visible=bool(host.results)
            )
            show = gradio.Button("Preview", variant="primary", elem_id="qllm-preview")
            if host.limits.pushes:
                token = gradio.Textbox(
                    "", type="password", label="Token", max_length=200, elem_id="qllm-token",
                    info="With the right to write. Used for one push, neither stored nor logged.",
                )  # fmt: skip
                private = gradio.Checkbox(False, label="Private repository")
                send = gradio.Button("Push to the Hub", variant="stop", elem_id="qllm-push")
            else:
                gradio.HTML('<p class="qllm-hint">This page does not push.</p>')
        with gradio.Column(scale=3, min_width=300):
            shown = gradio.HTML(HINT, elem_id="qllm-plan")

    def previewing(model: str, scheme: str, repo: str, licence: str, results: str) -> Iterator[str]:
        yield '<p class="qllm-hint" role="status">Packing the model …</p>'
        try:
            yield host.hide(preview_html(preview(host, Wish(model, scheme, repo, licence or "", results or ""))))
        except Exception as error:  # the border of the page
            yield host.explain_html(error)

    def pushing(
        model: str, scheme: str, repo: str, licence: str, results: str, token: str, private: bool
    ) -> Iterator[tuple[str, str]]:
        # the field is emptied at once: the token is this call's, and nobody's afterwards
        yield '<p class="qllm-hint" role="status">Packing and sending …</p>', ""
        try:
            done = publish(host, Wish(model, scheme, repo, licence or "", results or ""), token, private=private)
            said = "It was there already" if done.was_there else "Pushed"
            link = f'<a href="{text(done.url)}" rel="noopener">{text(done.url)}</a>'
            yield f'<div class="qllm-card" role="status"><h3>{said}</h3>{link}</div>', ""
        except Exception as error:  # the border of the page
            yield host.explain_html(error), ""

    wish = [model, scheme, repo, licence, results]
    show.click(previewing, wish, shown, **HEAVY)
    if host.limits.pushes:
        send.click(pushing, [*wish, token, private], [shown, token], **HEAVY)
