"""What a request may say. Checked on the JSON alone, before anything is made of it.

transformers takes much of it as it comes: a chat template that never ends, a million stop strings, thousands of beams,
a temperature that divides by zero. And what it does not know how to do, such as `n`, it leaves out without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..strict_json import parse_object
from .faults import RefusedError
from .rules import STOP, TEMPERATURE, YES_OR_NO, Rule, number, shown, whole

MOST_BRACKETS: Final = 200_000
MOST_BIASED: Final = 1_024
TEXTS: Final = ("prompt", "suffix", "messages", "input", "instructions", "tools", "state", "questions")
"""Fields whose texts become the prompt."""
KINDS: Final = frozenset({"role", "type"})
PARTS: Final = KINDS | {"content", "text"}
TEMPLATE_OPTIONS: Final = frozenset(
    {
        *("conversation", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("return_assistant_tokens_mask", "sanitize_control_tokens", "load_audio_from_video", "num_frames"),
    }
)
"""Arguments of `apply_chat_template` that are the server's own; the rest are variables of the model's template."""


@dataclass(frozen=True)
class Allowed:
    """What a model can be asked.

    Attributes:
        tokens: of prompt and answer, or None where there is no such number.
        characters: of the longest token of its tokenizer.
    """

    tokens: int | None = None
    characters: int | None = None


def _is_bias(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MOST_BIASED
        and all(token.isdecimal() and number(-100, 100).holds(bias) for token, bias in value.items())
    )


def _is_for_template(value: Any) -> bool:
    plain = str | int | float | bool | None
    return isinstance(value, dict) and all(
        name not in TEMPLATE_OPTIONS and isinstance(each, plain) for name, each in value.items()
    )


ONE: Final = Rule(lambda value: value == 1, "1: this server writes one answer to a request")
RULES: Final = {
    "max_tokens": whole(1),
    "max_completion_tokens": whole(1),
    "max_output_tokens": whole(1),
    "n": ONE,
    "best_of": ONE,
    "temperature": TEMPERATURE,
    "top_p": number(0.001, 1),
    "frequency_penalty": number(-0.99, 2),
    "seed": whole(-(2**63), 2**63 - 1),
    "stop": STOP,
    "stream": YES_OR_NO,
    "logit_bias": Rule(_is_bias, f"up to {MOST_BIASED} token ids, each with a number from -100 to 100"),
    "generation_config": Rule(lambda value: isinstance(value, str), "a text that holds a JSON object"),
    "chat_template_kwargs": Rule(_is_for_template, "variables of the model's own template, as plain values"),
}
"""For fields that are there and not null."""


def check_request(path: str, content_type: bytes, body: bytes, allowed: Allowed) -> None:
    """Compare a request with what is allowed.

    Raises:
        RefusedError: it says something else; 415 where a page of another site may have sent it, else 400.
    """
    if content_type.split(b";")[0].strip().lower() != b"application/json":
        raise RefusedError(415, "a request is JSON: send it with Content-Type: application/json.")
    fields = _object(body, "the request")
    for name, rule in RULES.items():
        if fields.get(name) is not None and not rule.holds(fields[name]):
            raise RefusedError(400, f"{name}={shown(fields[name])} cannot be. Give {rule.allowed}.")
    if fields.get("generation_config") is not None:
        _object(fields["generation_config"].encode("utf-8", "surrogatepass"), "generation_config")
    _check_length(fields, allowed)


def _object(text: bytes, name: str) -> dict[str, Any]:
    if text.count(b"[") + text.count(b"{") > MOST_BRACKETS:
        raise RefusedError(400, f"{name} has more than {MOST_BRACKETS} objects and lists.")
    try:
        return parse_object(text)
    except ValueError as error:
        raise RefusedError(400, f"{name} is no JSON object in UTF-8: {str(error)[:200]}.") from None


def _check_length(fields: dict[str, Any], allowed: Allowed) -> None:
    characters = 0
    for text in _texts([fields[name] for name in TEXTS if name in fields]):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise RefusedError(400, "a text holds half a character (a lone surrogate).") from None
        characters += len(text)
    if allowed.tokens is None:
        return
    if allowed.characters is not None and characters > allowed.tokens * allowed.characters:
        raise RefusedError(
            400,
            f"the prompt has {characters} characters. This model takes {allowed.tokens} tokens, and none of them has "
            f"more than {allowed.characters}.",
        )
    for name in ("messages", "input"):
        if isinstance(fields.get(name), list) and len(fields[name]) > allowed.tokens:
            raise RefusedError(400, f"{len(fields[name])} {name}, and this model takes {allowed.tokens} tokens.")


def _texts(values: list[Any]) -> Iterator[str]:
    """Every text in nested lists and objects, keys too, but for what a message is made of."""
    waiting = values
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            yield from value.keys() - PARTS
            waiting.extend(each for name, each in value.items() if name not in KINDS)
