"""Basic NLP: the texts that are compared, word for word as section 2.1 of the study's specification has them."""

from collections import Counter
from pathlib import Path

import pytest

from qllm_hf.evaluation.documents import nlp
from qllm_hf.evaluation.documents.document import choice, written
from qllm_hf.evaluation.sources import read_jsonl

HAND_MADE = Path(__file__).parents[2] / "data" / "eval" / "basic_nlp"


@pytest.fixture(scope="module")
def real(shared):
    def read(name: str) -> list[dict]:
        return read_jsonl(shared / "data" / "basic_nlp" / f"{name}.jsonl")

    return read


def test_lambada_asks_for_the_last_word():
    (found,) = nlp.lambada([{"text": "The cat sat on the warm mat"}], ())
    assert found["prompt"] == "Please complete the following sentence:\nThe cat sat on the warm"
    assert (found["answers"], found["choices"]) == (["mat"], [])


def test_lambada_loses_nothing_of_a_passage(real):
    rows = real("lambada_openai")
    for row, found in zip(rows, nlp.lambada(rows, ()), strict=True):
        (answer,) = found["answers"]
        start = found["prompt"].removeprefix("Please complete the following sentence:\n")
        assert f"{start} {answer}" == row["text"].rstrip()
        assert answer and not any(letter.isspace() for letter in answer)


def test_winogrande_puts_each_name_into_the_sentence():
    row = {"sentence": "The cup fell off the shelf because _ was shaky.", "option1": "the cup", "option2": "the shelf"}
    first, second = nlp.winogrande([{**row, "answer": "2"}, {**row, "answer": "1"}], ())
    assert first == choice(
        "",
        [
            "Good sentence: The cup fell off the shelf because the cup was shaky.",
            "Good sentence: The cup fell off the shelf because the shelf was shaky.",
        ],
        1,
    )
    assert second["label"] == 0


def test_piqa_makes_sense():
    row = {"goal": "dry wet shoes", "sol1": "fill them with newspaper", "sol2": "fill them with water", "label": 0}
    (found,) = nlp.piqa([row], ())
    assert found["choices"] == [
        "The following makes sense: \nQ: dry wet shoes\nA: fill them with newspaper\n",
        "The following makes sense: \nQ: dry wet shoes\nA: fill them with water\n",
    ]
    assert (found["prompt"], found["label"], found["answers"]) == ("", 0, ["0"])


@pytest.mark.parametrize("mark", ["#idiom#", "#idiom000123#"])
def test_chid_asks_whether_a_sentence_is_fluent(mark):
    row = {"content": f"孩子们听得{mark}。", "candidates": ["津津有味", "垂头丧气"], "answer": 0}
    (found,) = nlp.chid([row], ())
    assert found["choices"] == [
        "以下句子是否通顺？\n孩子们听得津津有味。\n这个句子是通顺的。",  # noqa: RUF001 - Chinese punctuation
        "以下句子是否通顺？\n孩子们听得垂头丧气。\n这个句子是通顺的。",  # noqa: RUF001 - Chinese punctuation
    ]
    assert found["label"] == 0


def test_race_gives_the_article_and_four_letters():
    row = {
        "article": "Nora sells honey.",
        "question": "What does Nora sell?",
        "options": ["Bread.", "Milk.", "Honey.", "Tea."],
        "answer": "C",
    }
    (found,) = nlp.race([row], ())
    assert found["prompt"] == (
        "Read the article, and answer the question by replying A, B, C or D.\n\nNora sells honey.\n\n"
        "Q: What does Nora sell?\n\nA. Bread.\nB. Milk.\nC. Honey.\nD. Tea.\nA:"
    )
    assert (found["choices"], found["label"]) == ([" A", " B", " C", " D"], 2)


def test_siqa_answers_a_question():
    row = {"context": "Maya lent her coat.", "question": "How would Tom feel?", "label": "3"}
    (found,) = nlp.siqa([{**row, "answerA": "angry", "answerB": "cold", "answerC": "thankful"}], ())
    assert found["choices"] == [
        "Maya lent her coat.\nQuestion: How would Tom feel?\nAnswer: angry",
        "Maya lent her coat.\nQuestion: How would Tom feel?\nAnswer: cold",
        "Maya lent her coat.\nQuestion: How would Tom feel?\nAnswer: thankful",
    ]
    assert found["label"] == 2


def test_labels_of_real_rows_name_the_right_text(real):
    """The text that a label points to is the one that the row's own answer names."""
    rows = real("winogrande")
    for row, found in zip(rows, nlp.winogrande(rows, ()), strict=True):
        right = row["option1"] if row["answer"] == "1" else row["option2"]
        assert found["choices"][found["label"]] == f"Good sentence: {row['sentence'].replace('_', right)}"
    rows = real("piqa")
    for row, found in zip(rows, nlp.piqa(rows, ()), strict=True):
        assert found["choices"][found["label"]].endswith(f"\nA: {row['sol2' if row['label'] else 'sol1']}\n")


def test_labels_are_not_all_the_same(real):
    """What a rule that always says the first would get is near chance, so a constant answer is no score."""
    for name, documents in (("winogrande", nlp.winogrande), ("piqa", nlp.piqa)):
        labels = Counter(found["label"] for found in documents(real(name), ()))
        assert set(labels) == {0, 1}
        assert 0.4 < labels[0] / sum(labels.values()) < 0.6


def test_hand_made_rows_have_the_schema_and_one_right_answer():
    chid = read_jsonl(HAND_MADE / "chid.jsonl", ("id", "content", "candidates", "answer"))
    for row, found in zip(chid, nlp.chid(chid, ()), strict=True):
        assert len(set(row["candidates"])) == 7
        assert row["candidates"][row["answer"]] in found["choices"][found["label"]]
        assert not any("#" in text for text in found["choices"])
    for level in ("middle", "high"):
        for found in nlp.race(read_jsonl(HAND_MADE / f"race_{level}.jsonl"), ()):
            assert 0 <= found["label"] < 4
    siqa = nlp.siqa(read_jsonl(HAND_MADE / "siqa.jsonl"), ())
    assert {found["label"] for found in siqa} == {0, 1, 2}


def test_wikitext_is_split_at_titles():
    rows = [
        {"text": text}
        for text in (
            "",
            " = First = \n",
            " Some text . \n",
            " = = Part = = \n",
            " More . \n",
            " = Second one = \n",
            "End",
        )
    ]
    assert [page["page"] for page in nlp.wikitext(rows, ())] == [
        " = First = \n Some text . \n = = Part = = \n More . \n",
        " = Second one = \nEnd\n",
    ]


def test_wikitext_loses_no_text(real):
    rows = real("wikitext2")
    pages = [page["page"] for page in nlp.wikitext(rows, ())]
    assert len(pages) == 29 + 2, "articles, and two formulas of one of them that look like titles"
    whole = "".join(row["text"] for row in rows)
    assert "".join("".join(pages).split()) == "".join(whole.split())
    assert all(page.lstrip().startswith("= ") and not page.lstrip().startswith("= =") for page in pages)


def test_a_document_says_what_its_rule_needs():
    assert choice("Q", ["a", "b"], 1, group="g") == {
        "prompt": "Q",
        "choices": ["a", "b"],
        "label": 1,
        "answers": ["1"],
        "group": "g",
    }
    found = written("Q", (word for word in ("yes", "yeah")), question="why")
    assert (found["answers"], found["target"], found["label"], found["question"]) == (["yes", "yeah"], "yes", -1, "why")
    assert written("Q", [])["target"] == ""


@pytest.mark.parametrize("change", [{"answer": "E"}, {"options": ["one", "two", "three"]}])
def test_a_row_that_is_no_row_of_its_benchmark_is_no_question(change):
    row = {"article": "a", "question": "q", "options": list("wxyz"), "answer": "A"}
    assert nlp.race([row], ())
    with pytest.raises(ValueError, match=r"substring not found|shorter"):
        nlp.race([{**row, **change}], ())
