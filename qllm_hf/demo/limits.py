"""What a page allows its visitors, and the checks of everything that they type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError, SchemeError
from ..scheme import FLOAT_BITS, Scheme

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LONGEST_SCHEME: Final = 40


@dataclass(frozen=True)
class Limits:
    """What one visitor may use.

    Attributes:
        memory_bytes: of weights that the page holds at once, for all visitors together.
        prompt_characters: of one message.
        prompt_tokens: of the conversation so far.
        new_tokens: of one answer.
        seconds: after which an answer ends, however long it is.
        waiting: visitors in the queue; more are asked to come back.
        hub: whether models may be named by their id on the Hub, and are downloaded then.
        pushes: whether a visitor may push, with a token of their own.
    """

    memory_bytes: int = 4 * 10**9
    prompt_characters: int = 4_000
    prompt_tokens: int = 1_536
    new_tokens: int = 256
    seconds: float = 60.0
    waiting: int = 32
    hub: bool = True
    pushes: bool = True


def check_model(name: str, offered: Mapping[str, str], *, hub: bool) -> str:
    """What to load for the name that a visitor gave: a folder that the host offers, or an id on the Hub.

    transformers takes a folder before an id, so a name that happens to be a folder of the host is refused. The sentence
    is the same whether or not there is something of that name: it must not say what the host has.

    Args:
        offered: {name on the page: folder or id}.

    Raises:
        ConfigError: it is neither.
    """
    wanted = name.strip()
    if wanted in offered:
        return offered[wanted]
    allowed = f"Choose one of {', '.join(offered)}" + (", or give an id on the Hub (owner/name)." if hub else ".")
    is_id = bool(_HUB_ID.fullmatch(wanted)) and ".." not in wanted and len(wanted) <= 200
    if not hub or not is_id or _is_here(wanted):
        raise ConfigError(f"{_shown(wanted)} is no model that this page can load. {allowed}")
    return wanted


def check_prompt(text: str, limits: Limits) -> str:
    """The text of a message.

    Raises:
        ConfigError: it is empty, or longer than allowed.
    """
    if not text.strip():
        raise ConfigError("there is nothing to answer: write a message first.")
    if len(text) > limits.prompt_characters:
        raise ConfigError(
            f"the message has {len(text):,} characters; this page takes {limits.prompt_characters:,}. Shorten it, or "
            "run the comparison on your own machine: qllm-hf demo."
        )
    return text


def check_scheme(text: str) -> Scheme:
    """The scheme that a visitor typed.

    Raises:
        SchemeError: it is none; the message is that of `Scheme.parse`.
    """
    if len(text) > LONGEST_SCHEME:
        raise SchemeError(f"scheme {text[:LONGEST_SCHEME]!r}... is not understood: it has {len(text):,} characters.")
    return Scheme.parse(text)


def describe_scheme(scheme: Scheme) -> str:
    """One line on what a scheme does.

    >>> describe_scheme(Scheme.parse("W3KV2"))
    'W3KV2: weights 3 bits in groups of 128, keys and values 2 bits.'
    """
    group = {-1: "per output channel", 0: "per tensor"}.get(scheme.w_group_size, f"in groups of {scheme.w_group_size}")
    parts = [
        f"weights {scheme.w} bits {group}" if scheme.w < FLOAT_BITS else "",
        f"activations {scheme.a} bits" if scheme.a < FLOAT_BITS else "",
        f"keys and values {scheme.kv} bits" if scheme.kv < FLOAT_BITS else "",
    ]
    return f"{scheme}: {', '.join(filter(None, parts)) or 'everything stays in floating point'}."


def _is_here(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # a text that can be no path
        return True


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")
