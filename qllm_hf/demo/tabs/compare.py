"""The tab on which two schemes answer the same message, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

import gradio

from ..answers import both, verdict
from ..conversation import CHAT, TEXT, new_talk, question_of, writer
from ..host import Host
from .events import HEAVY, LIGHT
from .schemes import scheme_field

SCHEMES: Final = ("FP16", "W8", "W4", "W3", "W2", "W8A8", "W4A8", "KV8", "KV4", "KV2", "W4KV8", "W4KV4", "W2KV2")
EXAMPLES: Final = (
    "I am Mia. I have a red kite and a blue drum.",
    "Question: 27+8-5+4=?",
    "Tell me a story about a dog.",
)
HINT: Final = "Marked words are tokens that the other side did not write. Both sides start from the same seed."


def leaving(host: Host) -> Callable[[gradio.Request], None]:
    """What to do when a visitor stops an answer, or closes the page: nobody waits for it any more."""

    def leave(request: gradio.Request) -> None:
        host.sessions.stop(str(request.session_hash))

    return leave


def build(host: Host) -> None:
    """Put the tab into the page that is being built."""
    first = next(iter(host.offered))
    with gradio.Row():
        model = gradio.Dropdown(
            list(host.offered),
            value=first,
            label="Model",
            allow_custom_value=host.limits.hub,
            info="One of this page" + (", or any id on the Hub: owner/name" if host.limits.hub else ""),
            min_width=280,
        )
        mode = gradio.Radio([CHAT, TEXT], value=CHAT, label="What the model gets", min_width=280)
    with gradio.Row():
        with gradio.Column(min_width=260):
            first_scheme = scheme_field("Left scheme", "FP16", SCHEMES, "qllm-left-scheme")
        with gradio.Column(min_width=260):
            second_scheme = scheme_field("Right scheme", "W3KV2", SCHEMES, "qllm-right-scheme")
    message = gradio.Textbox(
        label="Message",
        placeholder="Write to both models …",
        lines=2,
        max_lines=8,
        submit_btn=False,
        elem_id="qllm-message",
    )
    with gradio.Row(elem_classes="qllm-actions"):
        send = gradio.Button("Send", variant="primary", elem_id="qllm-send")
        stop = gradio.Button("Stop", variant="stop", elem_id="qllm-stop")
        retry = gradio.Button("Retry", elem_id="qllm-retry")
        clear = gradio.Button("New chat", elem_id="qllm-clear")
    gradio.Examples([[each] for each in EXAMPLES], message, label="Try one of these", api_visibility="private")
    with gradio.Accordion("How to write", open=False), gradio.Row():
        tokens = gradio.Slider(
            1, host.limits.new_tokens, min(96, host.limits.new_tokens), step=1, label="Tokens at most"
        )
        temperature = gradio.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 takes the likeliest token")
        seed = gradio.Number(0, precision=0, label="Seed", info="The same for both sides")
    status = gradio.HTML(f'<p class="qllm-hint">{HINT}</p>', elem_id="qllm-status")
    with gradio.Row(equal_height=True, elem_classes="qllm-sides"):
        left = gradio.HTML(both(None)[0], elem_id="qllm-left", min_width=280)
        right = gradio.HTML(both(None)[1], elem_id="qllm-right", min_width=280)
    talk = gradio.State(new_talk())
    form = [model, first_scheme, second_scheme, mode]
    written = [left, right, status, talk, message]

    write = writer(host)

    def ask(
        said: str, model: str, left: str, right: str, mode: str, tokens: int, temperature: float, seed: int,
        talk: dict[str, Any], request: gradio.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        setup = (model, left, right, mode)
        turns = talk["turns"] if talk["setup"] == setup else []
        try:
            question = question_of(host, said, setup, turns)
            question = replace(question, new_tokens=int(tokens), temperature=float(temperature), seed=int(seed or 0))
            keep = gradio.skip()
            yield keep, keep, '<p class="qllm-hint" role="status">Loading the model …</p>', keep, keep
            step = None
            for step in write(question, str(request.session_hash)):
                yield (*both(step, turns, said), '<p class="qllm-hint">Writing …</p>', keep, keep)
            assert step is not None
            turn = {"user": said, "left": step.left.text, "right": step.right.text}
            ended = f'<p class="qllm-verdict" role="status">{verdict(step)}</p>'
            yield (*both(step, turns, said), ended, {"setup": setup, "turns": [*turns, turn]}, "")
        except Exception as error:  # the border of the page: a visitor reads a sentence, the host's log has the rest
            yield (*both(None, turns), host.explain_html(error), talk, said)

    values = [*form, tokens, temperature, seed, talk]
    gradio.on([send.click, message.submit], ask, [message, *values], written, **HEAVY)

    def retrying(
        model: str, left: str, right: str, mode: str, tokens: int, temperature: float, seed: int, talk: dict[str, Any],
        request: gradio.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        if not talk["turns"]:
            keep = gradio.skip()
            yield keep, keep, '<p class="qllm-hint" role="status">Nothing to retry yet: send a message.</p>', keep, keep
            return
        before = {"setup": talk["setup"], "turns": talk["turns"][:-1]}
        said = talk["turns"][-1]["user"]
        yield from ask(said, model, left, right, mode, tokens, temperature, seed, before, request)

    retry.click(retrying, values, written, **HEAVY)

    stop.click(leaving(host), None, None, **LIGHT)
    clear.click(lambda: (*both(None), f'<p class="qllm-hint">{HINT}</p>', new_talk(), ""), None, written, **LIGHT)
