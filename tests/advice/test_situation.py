"""Questions that make sense are understood in any spelling; others are refused with what is allowed."""

import math

import pytest

from qllm_hf.advice.quantities import parse_memory, parse_percent, parse_tokens
from qllm_hf.advice.situation import LONG, TOPICS, Situation
from qllm_hf.errors import ConfigError
from qllm_hf.published.benchmarks import ABILITIES


@pytest.mark.parametrize(
    ("abilities", "topics"),
    [
        (("nlp",), ("nlp",)),
        (("basic_nlp", "trustworthiness"), ("nlp", "trust")),
        (("long_context",), ("long",)),
        (("Dialogue ",), ("dialogue",)),
        (("emergent",), ("icl", "if", "mr", "sc")),
        (("sc", "icl"), ("icl", "sc")),
        (("all",), tuple(TOPICS)),
        (ABILITIES, tuple(TOPICS)),
    ],
)
def test_abilities_become_topics(abilities, topics):
    assert Situation(abilities, 7).topics == topics


def test_a_long_context_is_a_topic():
    assert Situation(("nlp",), 7, context=LONG).topics == ("nlp", "long")
    assert Situation(("nlp",), 7, context=LONG - 1).topics == ("nlp",)


@pytest.mark.parametrize(
    ("params_b", "size_b"), [(6.74, 7), (12.85, 13), (13.02, 13), (68.98, 69), (2.8, 2.8), (0.1, 0.1)]
)
def test_sizes_are_rounded_as_names_are(params_b, size_b):
    assert Situation(("nlp",), params_b).size_b == size_b


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"abilities": ()}, "no abilities"),
        ({"abilities": ("longg",)}, "ability 'longg' is none. There are nlp, .* Did you mean 'long'?"),
        ({"abilities": ("mmr",)}, "of the emergent ones icl, if, mr, sc"),
        ({"params_b": 0}, "params_b=0"),
        ({"params_b": -7}, "params_b=-7"),
        ({"params_b": math.nan}, "params_b=nan"),
        ({"params_b": True}, "params_b=True"),
        ({"context": 0}, "context=0: give a positive whole number"),
        ({"context": 2.5}, "context=2.5"),
        ({"batch": -1}, "batch=-1"),
        ({"memory_bytes": 0}, "memory_bytes=0: give a number, more than 0"),
        ({"tolerance": -1}, "tolerance=-1: give a number, 0 or more"),
        ({"family": "lama"}, "family='lama': the study has none"),
    ],
)
def test_what_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        Situation(**{"abilities": ("nlp",), "params_b": 7, **values})


def test_a_tolerance_of_nothing_is_allowed():
    assert Situation(("nlp",), 7, tolerance=0).tolerance == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24 GiB", 24 * 2**30),
        ("0.5gb", 5 * 10**8),
        ("80gib", 80 * 2**30),
        ("1TB", 10**12),
        ("512MiB", 2**29),
        (123, 123),
    ],
)
def test_memory(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("24", "memory '24': write a unit, such as 24GB or 24GiB .*10.9 bytes, GiB is 2.30"),
        ("24G", "write a unit"),
        ("much", "write a number"),
        ("0GB", "give more than 0"),
        ("-4GB", "give more than 0"),
        ("", "write a number"),
        (0, "give more than 0"),
        ("24 GB x", "write a number"),
    ],
)
def test_memory_that_is_none(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_memory(text)


@pytest.mark.parametrize(
    ("text", "tokens"), [("16k", 16384), ("16K", 16384), ("4096", 4096), (7, 7), ("1M", 2**20), ("0.5k", 512)]
)
def test_tokens(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["0", "-1k", "16q", "2.5", "lots", "", "1.3k"])
def test_tokens_that_are_none(text):
    with pytest.raises(ConfigError, match="context"):
        parse_tokens(text)


@pytest.mark.parametrize(("text", "percent"), [("2%", 2), ("2", 2), (0.5, 0.5), ("0", 0), ("1.5 %", 1.5)])
def test_percentages(text, percent):
    assert parse_percent(text) == percent


@pytest.mark.parametrize("text", ["-1", "101%", "2x", "few"])
def test_percentages_that_are_none(text):
    with pytest.raises(ConfigError, match="tolerance"):
        parse_percent(text)
