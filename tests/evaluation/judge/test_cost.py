"""What judging will cost is said before it does, and only for what is not in the cache."""

import pytest

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.judge.cached import CachedJudge
from qllm_hf.evaluation.judge.cost import Estimate, Price, estimate, parse_price


class Judge:
    name = "fixed"

    def ask(self, messages):
        return "[[5]]"


def prompt(characters: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": "s" * 3}, {"role": "user", "content": "u" * (characters - 3)}]


def test_tokens_are_rounded_up_per_prompt():
    assert estimate([prompt(9), prompt(8)], max_tokens=100) == Estimate(2, 0, 5, 200, None)


def test_dollars():
    found = estimate([prompt(4000)] * 10, price=Price(2.5, 10), max_tokens=1000)
    assert found.dollars == pytest.approx((10_000 * 2.5 + 10_000 * 10) / 1e6)


def test_only_what_is_not_in_the_cache(tmp_path):
    cache = CachedJudge(Judge(), tmp_path / "cache.jsonl")
    cache.ask(prompt(8))
    found = estimate([prompt(8), prompt(12), prompt(12)], cache=cache, price=Price(1, 1))
    # two equal prompts are one call
    assert (found.calls, found.cached, found.prompt_tokens) == (1, 2, 3)
    cache.ask(prompt(12))
    assert estimate([prompt(8), prompt(12)], cache=cache, price=Price(1, 1)) == Estimate(0, 2, 0, 0, 0.0)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            Estimate(56, 40, 23400, 114688, 4.135),
            "56 calls to the judge (40 more are in the cache) with about 23,400 prompt tokens (characters / 4) and at "
            "most 114,688 tokens of judgements, so at most $4.13.",
        ),
        (
            Estimate(1, 0, 12, 2048, None),
            "1 call to the judge with about 12 prompt tokens (characters / 4) and at most 2,048 tokens of judgements.",
        ),
        (Estimate(0, 96, 0, 0, 0.0), "The judge will not be asked: all 96 judgements are in the cache."),
    ],
)
def test_one_sentence(found, sentence):
    assert str(found) == sentence


@pytest.mark.parametrize(("text", "price"), [("2.50,10", (2.5, 10)), ("0,0", (0, 0)), (" 30 , 60 ", (30, 60))])
def test_price(text, price):
    assert parse_price(text) == price


@pytest.mark.parametrize("text", ["", "3", "1,2,3", "a,b", "-1,2", "nan,1", "1,inf", "1;2", "$1,$2"])
def test_wrong_price(text):
    with pytest.raises(ConfigError, match="not two numbers with a comma between"):
        parse_price(text)
