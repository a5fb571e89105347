"""What judging will cost, before the first call."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from ...errors import ConfigError
from .cached import CachedJudge
from .judge import MAX_TOKENS, Messages

CHARACTERS_PER_TOKEN: Final = 4


class Price(NamedTuple):
    """Dollars per million tokens, of the prompt and of the judgement."""

    prompt: float
    completion: float


@dataclass(frozen=True)
class Estimate:
    """What a list of prompts will cost, at most.

    Attributes:
        calls: how often the judge will be asked.
        cached: how many of the prompts were judged before, or are the same as another one.
        prompt_tokens: of all calls together, as characters / 4.
        most_completion_tokens: if every judgement is as long as it may be; most are much shorter.
        dollars: at that length, or None without a price.
    """

    calls: int
    cached: int
    prompt_tokens: int
    most_completion_tokens: int
    dollars: float | None

    def __str__(self) -> str:
        if not self.calls:
            return f"The judge will not be asked: all {self.cached} judgements are in the cache."
        calls = "1 call" if self.calls == 1 else f"{self.calls:,} calls"
        cached = f" ({self.cached:,} more are in the cache)" if self.cached else ""
        price = "" if self.dollars is None else f", so at most ${self.dollars:,.2f}"
        return (
            f"{calls} to the judge{cached} with about {self.prompt_tokens:,} prompt tokens (characters / "
            f"{CHARACTERS_PER_TOKEN}) and at most {self.most_completion_tokens:,} tokens of judgements{price}."
        )


def parse_price(text: str) -> Price:
    """The price that "IN,OUT" says, in dollars per million tokens of prompts and of judgements.

    >>> parse_price("2.50,10")
    Price(prompt=2.5, completion=10.0)

    Raises:
        ConfigError: it is not two numbers from 0 on.
    """
    try:
        price = Price(*(float(part) for part in text.split(",")))
    except (ValueError, TypeError):
        price = Price(-1, -1)
    if not all(math.isfinite(dollars) and dollars >= 0 for dollars in price):
        raise ConfigError(
            f"price {text!r} is not two numbers with a comma between: dollars per million tokens of prompts and of "
            "judgements, such as 2.50,10."
        )
    return price


def estimate(
    prompts: Iterable[Messages],
    *,
    cache: CachedJudge | None = None,
    price: Price | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Estimate:
    """What a judge will be asked and what it may cost; prompts whose judgement is in the `cache` cost nothing.

    A token is taken as four characters, rounded up per prompt: close for English, too few for Chinese, and free of
    any tokenizer, which for most judges over HTTP is not to be had.
    """
    prompts = list(prompts)
    if cache is None:
        asked = prompts
    else:
        asked = list({cache.key(messages): messages for messages in prompts if not cache.knows(messages)}.values())
    prompt_tokens = sum(_tokens(messages) for messages in asked)
    completion_tokens = len(asked) * max_tokens
    dollars = None
    if price is not None:
        dollars = (prompt_tokens * price.prompt + completion_tokens * price.completion) / 1e6
    return Estimate(len(asked), len(prompts) - len(asked), prompt_tokens, completion_tokens, dollars)


def _tokens(messages: Messages) -> int:
    return math.ceil(sum(len(message["content"]) for message in messages) / CHARACTERS_PER_TOKEN)
