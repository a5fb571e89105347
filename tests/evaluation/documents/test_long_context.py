"""Long context: what is asked is in the text, once, and the place of it is said right (section 2.5)."""

import json
import re
import uuid
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf.evaluation.documents import long_context
from qllm_hf.evaluation.documents.long_context import generate_key_value, generate_lines
from qllm_hf.evaluation.questions import GENERATED_ROWS, documents_of
from qllm_hf.evaluation.sources import read_jsonl

LINE = re.compile(r"^line (.+): REGISTER_CONTENT is <(\d+)>$", re.MULTILINE)


@pytest.fixture(scope="module")
def real(shared):
    def read(name: str) -> list[dict]:
        return read_jsonl(shared / "data" / "long_context" / f"{name}.jsonl")

    return read


def check_lines(row: dict, number: int) -> None:
    """A row of lines: unique names, and the value of the line that is asked."""
    found = LINE.findall(row["prompt"])
    names = [name for name, _ in found]
    assert len(names) == len(set(names)) == number
    asked = re.search(r"Tell me what is the <REGISTER_CONTENT> in line (.+)\? I need the number\.", row["prompt"])
    assert asked is not None
    place = names.index(asked[1])
    assert (row["random_idx"], row["num_lines"]) == ([asked[1], place], number)
    assert int(found[place][1]) == row["expected_number"]
    assert 1 <= row["expected_number"] <= 50_000


@pytest.mark.parametrize("number", [2, 3, 200, 5000])
def test_generated_lines_hold_what_is_asked(number):
    rows = generate_lines(number, 3)
    for row in rows:
        check_lines(row, number)
    assert len({row["prompt"] for row in rows}) == 3
    broken = {**rows[0], "expected_number": rows[0]["expected_number"] % 50_000 + 1}
    with pytest.raises(AssertionError):
        check_lines(broken, number)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**32))
def test_generated_lines_come_from_their_seed(number, seed):
    rows = generate_lines(number, 2, seed)
    assert rows == generate_lines(number, 2, seed)
    assert rows[:1] == generate_lines(number, 1, seed), "the first rows of a longer run are those of a shorter one"
    assert rows != generate_lines(number, 2, seed + 1)
    for row in rows:
        check_lines(row, number)


def test_generated_lines_have_the_form_of_the_authors(real):
    """The text around the lines is theirs, letter by letter."""
    theirs = real("longeval_lines")[0]
    (ours,) = generate_lines(theirs["num_lines"], 1)
    assert set(ours) <= set(theirs)

    def around(row):
        return LINE.sub("", row["prompt"]).replace(row["random_idx"][0], "NAME").split()

    assert around(ours) == around(theirs)


def test_real_lines_hold_what_is_asked(real):
    rows = real("longeval_lines")
    for row, found in zip(rows, long_context.lines(rows, ()), strict=True):
        name, place = row["random_idx"]
        assert LINE.findall(row["prompt"])[place] == (name, str(row["expected_number"]))
        assert (found["prompt"], found["answers"]) == (row["prompt"], [str(row["expected_number"])])


@pytest.mark.parametrize(
    ("place", "length", "tenth"),
    [(0, 200, "01"), (19, 200, "01"), (20, 200, "02"), (199, 200, "10"), (0, 2, "01"), (1, 2, "06"), (679, 680, "10")],
)
def test_the_place_is_the_right_tenth(place, length, tenth):
    row = {"prompt": "p", "expected_number": 7, "num_lines": length, "random_idx": ["name", place]}
    assert long_context.lines([row], ())[0]["group"] == f"position {tenth}"


def test_generated_places_are_in_all_tenths():
    documents, rows = documents_of("qllm_lines_50")
    assert (rows.origin, len(documents)) == ("generated", GENERATED_ROWS)
    counts = Counter(found["group"] for found in documents)
    assert sorted(counts) == [f"position {tenth:02d}" for tenth in range(1, 11)]
    assert min(counts.values()) > GENERATED_ROWS / 10 / 2


def test_lines_of_one_length_come_from_the_file_and_others_are_made(shared, real):
    """The file has no 500 lines."""
    documents, rows = documents_of("qllm_lines_200", shared / "data")
    own = [row for row in real("longeval_lines") if row["num_lines"] == 200]
    assert (rows.rows, rows.origin) == (own, "file long_context/longeval_lines.jsonl")
    assert 0 < len(documents) < len(real("longeval_lines"))
    made, rows = documents_of("qllm_lines_500", shared / "data")
    assert (rows.origin, len(made)) == ("generated", GENERATED_ROWS)
    assert LINE.findall(made[0]["prompt"])[499]


def test_the_answer_to_topics_is_the_first_one(real):
    rows = real("longeval_topics")
    for row, found in zip(rows, long_context.topics(rows, ()), strict=True):
        assert (found["prompt"], found["answers"]) == (row["prompt"], [row["topics"][0]])
        first = re.search(r"USER: I would like to discuss the topic of (.*?)\. ?\n", row["prompt"])
        assert first is not None and first[1].casefold() == row["topics"][0].casefold()
        assert found["group"] == f"{row['num_topics']:02d} topics"


def test_key_value_prompts():
    row = {"ordered_kv_records": [["key one", "a b"], ["key two", "c"]], "key": "key two", "value": "c"}
    (found,) = long_context.key_value([row], ())
    assert found["prompt"] == (
        "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
        '{\n "key one": "a b",\n "key two": "c"\n}\n\nKey: "key two"\nCorresponding value:'
    )
    assert (found["answers"], found["group"]) == (["c"], "position 06")


def check_key_value(row: dict) -> None:
    """The text is JSON in which the key has the value, under one name only."""
    (found,) = long_context.key_value([row], ())
    data, _, asked = found["prompt"].partition("JSON data:\n")[2].rpartition("\n\nKey: ")
    pairs = json.loads(data, object_pairs_hook=list)
    assert len({key for key, _ in pairs}) == len(pairs) == row["num_keys"]
    key = json.loads(asked.split("\n")[0])
    assert [value for name, value in pairs if name == key] == [row["value"]] == found["answers"]
    place = [name for name, _ in pairs].index(key)
    assert found["group"] == f"position {place * 10 // len(pairs) + 1:02d}"


@pytest.mark.parametrize("number", [2, 75, 140, 2000])
def test_generated_keys_hold_what_is_asked(number):
    rows = generate_key_value(number, 2)
    assert rows == generate_key_value(number, 2)
    assert rows != generate_key_value(number, 2, seed=1)
    for row in rows:
        check_key_value(row)
        assert all(str(uuid.UUID(text)) == text for pair in row["ordered_kv_records"] for text in pair)
    with pytest.raises(AssertionError):
        check_key_value({**rows[0], "value": rows[1]["value"]})


def test_real_keys_hold_what_is_asked(real):
    rows = real("kv_retrieval")
    for row in rows:
        check_key_value(row)


@pytest.mark.parametrize("number", [75, 140])
def test_keys_of_one_number_come_from_the_file(number, shared, real):
    _, rows = documents_of(f"qllm_kv_retrieval_{number}", shared / "data")
    assert rows.rows == [row for row in real("kv_retrieval") if row["num_keys"] == number]
    assert documents_of("qllm_kv_retrieval_9", shared / "data")[1].origin == "generated"


def page(title: str, text: str, is_gold: bool = False) -> dict:
    return {"title": title, "text": text, "isgold": is_gold}


def test_documents_are_numbered_from_one():
    pages = [page("Ice", "Ice is cold."), page("Fire", "Fire is hot.", True)]
    row = {"question": "what is hot", "answers": ["Fire", "flames"], "ctxs": pages}
    (found,) = long_context.documents_qa([row], ())
    assert found["prompt"] == (
        "Write a high-quality answer for the given question using only the provided search results (some of which "
        "might be irrelevant).\n\nDocument [1](Title: Ice) Ice is cold.\nDocument [2](Title: Fire) Fire is hot.\n\n"
        "Question: what is hot\nAnswer:"
    )
    assert (found["answers"], found["group"]) == (["Fire", "flames"], "02 documents, at 01")


def test_the_place_of_the_right_document(real):
    """The column of the study's files, and what its pages say of themselves, are the same place."""
    rows = real("nq_open_multidoc_random")
    with_column = long_context.documents_qa(rows, ())
    without = long_context.documents_qa([{k: v for k, v in row.items() if k != "gold_index"} for row in rows], ())
    assert with_column == without
    for row, found in zip(rows, with_column, strict=True):
        place = int(found["group"].rpartition(" ")[2])
        assert row["ctxs"][place]["isgold"]
        assert any(answer.lower() in row["ctxs"][place]["text"].lower() for answer in row["answers"])
        assert f"Document [{place + 1}](Title: {row['ctxs'][place]['title']})" in found["prompt"]
    assert len({found["group"] for found in with_column}) > 3
