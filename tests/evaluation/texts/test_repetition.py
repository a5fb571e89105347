"""Ordinary writing is fine, and what quantized models wrote is not."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf import QllmConfig
from qllm_hf.errors import QllmError
from qllm_hf.evaluation.texts.repetition import THRESHOLD, VERDICTS, Condition, condition_rates, look_at
from qllm_hf.loading import load_model, load_tokenizer

CHINESE = "他很喜欢这座城市。天气很好\uff01你明天来吗\uff1f"
STORY = "Once upon a time there was a fox. It lived near the river. One day it met an old owl."


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        (STORY, "fine"),
        (CHINESE, "fine"),
        ("He lived in his room. " * 5, "sentence repetition"),
        ("HE LIVED in his   room! He lived in his room? It was good.", "sentence repetition"),
        ("我爱我的家人。" * 3, "sentence repetition"),
        ("他说的话很对\uff01你好吗\uff1f他说的话很对\uff01", "sentence repetition"),
        ("A line of nine words that has no mark\n" * 3, "sentence repetition"),
        ("the dog saw saw saw saw saw saw saw", "token repetition"),
        ("- castle: ivy\n" * 9, "token repetition"),
        ("One day, Tom wereGGGGGGGGGGGGGGGGGGGGGGGGGGGGG", "token repetition"),
        ("好" * 20, "token repetition"),
        ("Yes. Yes. Yes. Yes. Yes.", "token repetition"),  # too short for sentences
        ("!!!!!!!!!!!!!!!!", "garbage"),
        ("Well \ufffd\ufffd\ufffd\ufffd\ufffd\ufffd \x00\x01\x02", "garbage"),
        (";,)] (&%{ }@~ ^# |: ok", "garbage"),
        ("a1b2c3d4e5 x9y8z7w6v5 is it", "garbage"),
        ("wh#t$s up&d~wn to$d#y", "garbage"),
        ("the Хронология of שלום was слово in मैं", "garbage"),
        ("te\u0440\u0440\u0438to\u0433y of\u0430\u043d\u044b and\u0433o", "garbage"),
    ],
)
def test_verdicts(text, verdict):
    assert look_at(text).verdict == verdict


@pytest.mark.parametrize(
    "text",
    [
        "Options:\n- Yes\n- No\n- Yes\n- No",  # short items are no sentences
        "1. Rome. It is in Italy.\n2. Milan. It is in Italy.\n3. Turin. It is in Italy.",  # an item is one sentence
        "```python\nx = get(x)\nreturn x.\nx = get(x)\nreturn x.\n```\nThis calls it twice.",
        "    if (a[i] < b[j]) { return a[i]; }\n    if (a[i] < b[j]) { return a[i]; }\nIt is there twice.",
        "= = = Film = = =",
        "Title\n--------------------\nWords",
        "See https://a.b/c1d2e3f4g5?x=1&y=2&z=3 for it",
        "The key is 9a0ef3c1-77b2-4d1e-8f00-1c2d3e4f5a6b",
        "Glucose is C6H12O6.",
        "He said no, no, no! But she went on to the house and asked again whether he would come.",
        "dog \u2014 собака\ncat \u2014 кошка",
        "3 + 4 = 7, 7 * 2 = 14",
        "def f(a, b):\n    return [(a, b), (b, a)]",
    ],
)
def test_traps(text):
    assert look_at(text).verdict == "fine"


def test_measures_by_hand():
    assert look_at("One two three. One two three. Four five six. Seven eight nine.").sentence_repetition == 0.25
    assert look_at("a b c d d d d e").token_repetition == 0.5
    assert look_at("a b c d d d e f").token_repetition == 0  # 2 more times
    assert look_at("x y x y x y x y z z").token_repetition == 0.8
    assert look_at("ab\ufffd\ufffd").garbage == 0.5


def test_thresholds_and_precedence():
    below = THRESHOLD - 0.01
    assert Condition(below, below, below).verdict == "fine"
    assert Condition(below, THRESHOLD, below).verdict == "token repetition"
    assert Condition(THRESHOLD, 1.0, below).verdict == "sentence repetition"
    assert Condition(1.0, 1.0, THRESHOLD).verdict == "garbage"
    assert Condition(0.0, 0.0, 0.0, is_empty=True).verdict == "empty"


@given(st.text(max_size=200))
def test_any_text_has_shares_and_a_verdict(text):
    condition = look_at(text)
    for share in (condition.sentence_repetition, condition.token_repetition, condition.garbage):
        assert 0 <= share <= 1
    assert condition.verdict in VERDICTS
    assert (condition.verdict == "empty") == (not text.strip())


def test_rates():
    rates = condition_rates([STORY, CHINESE, "", "word " * 9])
    assert list(rates) == list(VERDICTS)
    assert rates == {
        "fine": 0.5, "empty": 0.25, "garbage": 0.0, "sentence repetition": 0.0, "token repetition": 0.25,
    }  # fmt: skip
    with pytest.raises(QllmError, match="no texts"):
        condition_rates([])


def ordinary(shared: Path) -> dict[str, list[str]]:
    def rows(name: str) -> list[dict]:
        with (shared / "data" / f"{name}.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    answers = rows("dialogue/mt_bench_reference_answer_gpt-4")
    return {
        "tinystories": [row["text"] for row in rows("basic_nlp/tinystories")],
        "wikitext2": [row["text"] for row in rows("basic_nlp/wikitext2") if row["text"].strip()],
        "scitldr": [text for row in rows("basic_nlp/scitldr") for text in (" ".join(row["source"]), *row["target"])],
        "cmrc2018": sorted({row["context"] for row in rows("basic_nlp/cmrc2018")}),
        "gsm8k": [row["answer"] for row in rows("emergent/gsm8k")],
        "mt_bench": [turn for row in answers for turn in row["choices"][0]["turns"]],
        "strategyqa": [" ".join(row["facts"]) for row in rows("emergent/strategyqa")],
    }


def test_ordinary_text_is_fine_and_damaged_text_is_not(shared):
    """One of 3800 texts is not: a line of wikitext2 that is <unk> 30 times."""
    for name, texts in ordinary(shared).items():
        assert condition_rates(texts)["fine"] > 0.999, name
        # What follows an open fence counts as code, where nothing is garbage.
        some = [text for text in texts if "```" not in text and (len(text.split()) > 60 or name == "cmrc2018")][:30]
        seed = random.Random(0)
        for text in some:
            middle = len(text) // 2
            assert look_at(text[:middle] + " so so" * (len(text) // 6)).verdict == "token repetition"
            noise = "".join(chr(seed.choice((0xFFFD, 0x1F, 0xE000))) for _ in text)
            assert look_at(text[:middle] + noise).verdict == "garbage"
            again = "This sentence comes again. " * len(text)
            assert look_at(f"{again}\n{text}").verdict == "sentence repetition"


def write(name: str, config: QllmConfig | None, prompts: list[str]) -> list[str]:
    model, tokenizer = load_model(name, config) if config else load_model(name), load_tokenizer(name)
    texts = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        ids = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False)
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return texts


def test_what_quantized_models_write(stories):
    """W2 breaks a small model into repeated words; the float model's stories are fine."""
    prompts = ["Once upon a time", "One day, Tom", "Lily and Ben", "The little dog"]
    assert condition_rates(write(str(stories), None, prompts))["fine"] == 1
    rates = condition_rates(write(str(stories), QllmConfig(w=2), prompts))
    assert rates["token repetition"] == 1


def test_the_reference_model_repeats_lists_at_two_bits():
    prompts = ["In the garden", "Sara has a red ball."]
    assert condition_rates(write("reference", None, prompts))["fine"] == 1
    assert condition_rates(write("reference", QllmConfig(w=2), prompts))["token repetition"] == 1
