"""The two answers as HTML. Whatever a visitor or a model wrote goes through `text`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..page.html import text
from ..reporting.text import bytes_text
from .compare import Side, Step

ENDED: Final = {
    "": "writing …",
    "end": "finished",
    "length": "reached the number of tokens",
    "stopped": "stopped",
    "time": "out of time",
}
EMPTY: Final = '<p class="qllm-hint">The answer will appear here.</p>'


def side(
    name: str, answer: Side | None, turns: Sequence[Mapping[str, Any]], asked: str = "", most_bytes: int = 0
) -> str:
    """One column: the conversation so far, the answer with its differences marked, and what it takes.

    Args:
        name: "Left" or "Right".
        turns: earlier turns, {"user", "left", "right"}.
        asked: the message that `answer` is the answer to.
        most_bytes: that the bars are drawn to the scale of.
    """
    scheme = answer.scheme if answer else ""
    said = "".join(_turn(str(turn["user"]), text(turn[name.lower()])) for turn in turns)
    now = "" if answer is None else _turn(asked, marked(answer))
    head = f'<h3 class="qllm-side-title">{text(name)}{": " + text(scheme) if scheme else ""}</h3>'
    body = said + now or EMPTY
    figures = "" if answer is None else measures(answer, most_bytes)
    label = f"{name} answer" + (f", {scheme}" if scheme else "")
    return (
        f'<section class="qllm-side" aria-label="{text(label)}">{head}{figures}'
        f'<div class="qllm-talk" tabindex="0" role="log" aria-label="{text(label)}">{body}</div></section>'
    )


def marked(answer: Side) -> str:
    """The answer with tokens that the other one lacks inside <mark>; neighbours share one."""
    parts: list[str] = []
    run, is_marked = "", False
    for piece, differs in answer.pieces:
        if differs != is_marked and run:
            parts.append(_run(run, is_marked))
            run = ""
        run, is_marked = run + piece, differs
    return "".join(parts) + (_run(run, is_marked) if run else "")


def measures(answer: Side, most_bytes: int) -> str:
    """Speed and memory of one answer, as numbers and a bar of weights and cache."""
    total = answer.weight_bytes + answer.cache_bytes
    scale = max(most_bytes, total, 1)
    widths = (100 * answer.weight_bytes / scale, 100 * answer.cache_bytes / scale)
    speed = f"{answer.tokens_per_second:.0f} tokens/s" if answer.tokens_per_second else "- tokens/s"
    numbers = [
        ("Speed", speed),
        ("First token", f"{answer.first_token_seconds:.2f} s" if answer.first_token_seconds else "-"),
        ("Weights", bytes_text(answer.weight_bytes)),
        ("KV cache", bytes_text(answer.cache_bytes)),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>" for name, value in numbers)
    bar = (
        f'<div class="qllm-bar" role="img" aria-label="Memory: {bytes_text(answer.weight_bytes)} of weights and '
        f'{bytes_text(answer.cache_bytes)} of cache"><span class="qllm-bar-weights" style="width:{widths[0]:.2f}%">'
        f'</span><span class="qllm-bar-cache" style="width:{widths[1]:.2f}%"></span></div>'
    )
    state = f'<p class="qllm-state">{answer.tokens} tokens, {ENDED[answer.finished]}</p>'
    return f'<dl class="qllm-numbers">{items}</dl>{bar}{state}'


def both(step: Step | None, turns: Sequence[Mapping[str, Any]] = (), asked: str = "") -> tuple[str, str]:
    """The two columns, their bars to the same scale."""
    sides = (None, None) if step is None else (step.left, step.right)
    most = max((each.weight_bytes + each.cache_bytes for each in sides if each), default=0)
    return side("Left", sides[0], turns, asked, most), side("Right", sides[1], turns, asked, most)


def verdict(step: Step) -> str:
    """One sentence on how the two answers compare, for eyes and screen readers."""
    names = text(step.left.scheme), text(step.right.scheme)
    counts = step.left.tokens, step.right.tokens
    alone = [sum(differs for _, differs in each.pieces) for each in (step.left, step.right)]
    if not any(alone) and counts[0] == counts[1]:
        said = f"{names[0]} and {names[1]} wrote the same {counts[0]} tokens."
    else:
        said = (
            f"{names[0]} wrote {counts[0]} tokens, {names[1]} {counts[1]}; marked: {alone[0]} and {alone[1]} that the "
            "other side did not write."
        )
    lighter = [each.weight_bytes + each.cache_bytes for each in (step.left, step.right)]
    saved = f" Weights and cache: {bytes_text(lighter[0])} and {bytes_text(lighter[1])}."
    return said + saved + ("" if step.together else " One after the other, since both do not fit in memory together.")


def _run(piece: str, is_marked: bool) -> str:
    return f"<mark>{text(piece)}</mark>" if is_marked else text(piece)


def _turn(asked: str, answered: str) -> str:
    """`answered` is HTML already."""
    return (
        f'<p class="qllm-asked"><span class="qllm-who">You</span>{text(asked)}</p>'
        f'<p class="qllm-answer"><span class="qllm-who">Model</span>{answered}</p>'
    )
