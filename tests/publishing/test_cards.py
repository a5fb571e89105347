"""Cards as values: reading, writing, merging, and the checks of the block at the top."""

from __future__ import annotations

import copy
import json
from itertools import pairwise

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.errors import CheckpointError
from qllm_hf.publishing.frontmatter import Card, check_front, read_card, write_card
from qllm_hf.publishing.licences import choose_licence
from qllm_hf.publishing.merge import BEGIN, END, merge_cards, section
from qllm_hf.publishing.model_index import changed_results, merge_index
from qllm_hf.publishing.problems import PublishError
from qllm_hf.publishing.recipe import RECIPE, read_recipe
from qllm_hf.publishing.tables import markdown, plain

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=20)
FRONT = st.dictionaries(
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True), WORDS | st.integers() | st.lists(WORDS), max_size=4
)
LINES = st.lists(WORDS.filter(lambda line: "---" not in line and "<!--" not in line), max_size=4).map("\n".join)
GOOD = {
    "license": "apache-2.0",
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "base_model": "a/b",
    "tags": ["x"],
}


def index(value: object = 0.5, task: str = "t", *, by: str = "qllm_hf", weights: str = "w1", **terms: object) -> list:
    arguments = {"by": by, "weights": weights, **terms}
    metric = {"type": "acc", "value": value, "config": task, "args": arguments}
    data = {"name": "D", "type": "d"}
    return [{"name": "m", "results": [{"task": {"type": "text-generation"}, "dataset": data, "metrics": [metric]}]}]


@given(FRONT.filter(bool), LINES)
def test_card_is_read_as_it_was_written(front, text):
    assert read_card(write_card(Card(front, text))) == Card(front, text)


@pytest.mark.parametrize("content", ["# text", "", "--\na: b\n--\n"])
def test_card_without_block(content):
    assert read_card(content) == Card({}, content)


def test_block_as_others_write_it():
    assert read_card("\ufeff---\r\nlicense: mit\r\n---\r\ntext").front == {"license": "mit"}
    assert read_card("---\n---\ntext") == Card({}, "text")
    for wrong in ("---\na: [\n---\n", "---\n- a\n---\n"):
        with pytest.raises(PublishError, match="block at the top"):
            read_card(wrong)


@given(LINES, LINES, FRONT)
def test_words_of_a_person_survive_any_number_of_merges(above, below, front):
    ours = Card({**GOOD}, f"\n{BEGIN}\nnew\n{END}\n")
    there = Card(front, f"{above}\n{BEGIN}\nold\n{END}\n{below}")
    merged = merge_cards(there, ours, "w1", "m")
    assert merged.text == f"{above}\n{BEGIN}\nnew\n{END}\n{below}"
    assert merged.front.items() >= {key: value for key, value in front.items() if key not in GOOD}.items()
    assert merge_cards(merged, ours, "w1", "m") == merged


def test_section_is_only_between_the_markers():
    assert section(f"a {BEGIN} b {END} c") == f"{BEGIN} b {END}"
    assert section("a b c") == section(f"{BEGIN} without end") == ""


def test_check_accepts_what_the_hub_accepts():
    check_front({**GOOD, "model-index": index(), "language": ["en"], "datasets": "a/b"})
    check_front({**GOOD, "license": "other", "license_name": "x", "license_link": "LICENSE"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"license": None}, "license is missing"),
        ({"license": "Apache 2.0"}, "Did you mean 'apache-2.0'"),
        ({"license": "other"}, "needs license_name"),
        ({"base_model": "/home/me/model"}, "no id on the Hub"),
        ({"tags": [1]}, "not a list of words"),
        ({"pipeline_tag": ["a"]}, "not a text"),
        ({"model-index": [{"name": "m", "results": [{"task": {}}]}]}, "lacks 'dataset'"),
        ({"model-index": index(True)}, "no type or no number"),
        ({"model-index": [{**index()[0], "name": ""}]}, "has no name"),
    ],
)
def test_check_names_what_is_wrong(changes, said):
    with pytest.raises(PublishError, match=said):
        check_front({**GOOD, **changes})


@pytest.mark.parametrize(
    ("there", "here", "changes"),
    [
        (index(0.5), index(0.5), 0),
        (index(0.5), index(0.5 + 1e-9), 0),
        (index(0.5), index(0.6), 1),
        (index(0.5, shots=4), index(0.5, shots=5), 1),
        (index(0.5, weights="w0"), index(0.5), 1),
        (index("20.0 +- 1.2"), index(0.5), 1),
        (index(0.5, "other"), index(0.5), 0),
        (index(0.5, "other", weights="w0"), index(0.5), 1),
        (index(0.5, "other", by="somebody", weights="w0"), index(0.5), 0),
        (None, index(0.5), 0),
        ("nonsense", index(0.5), 0),
    ],
)
def test_changed_results_are_found(there, here, changes):
    assert len(changed_results(there, here, "w1")) == changes


def test_results_of_others_stay_and_ours_of_other_weights_go():
    theirs = index(0.1, "theirs", by="somebody")
    stale, old = index(0.2, "stale", weights="w0"), index(0.3, "t")
    there = [{"name": "m", "results": [each[0]["results"][0] for each in (theirs, stale, old)]}]
    before = copy.deepcopy(there)
    (merged,) = merge_index(there, index(0.4, "t"), "w1", "new")
    assert [(each["metrics"][0]["config"], each["metrics"][0]["value"]) for each in merged["results"]] == [
        ("theirs", 0.1),
        ("t", 0.4),
    ]
    assert there == before
    assert merge_index(None, [], "w1", "new") == []


def test_merged_card_is_one_for_the_hub():
    there = Card({"license": "mit", "widget": "x", "tags": "one"}, "theirs\n")
    merged = merge_cards(there, Card({**GOOD, "model-index": index()}, f"\n{BEGIN}\nnew\n{END}\n"), "w1", "m")
    assert list(merged.front) == [
        "license",
        "library_name",
        "pipeline_tag",
        "base_model",
        "tags",
        "widget",
        "model-index",
    ]
    assert (merged.front["license"], merged.front["tags"]) == ("apache-2.0", ["one", "x"])
    content = write_card(merged)
    assert ModelCard(content).content == content


def test_licence_of_the_card_or_of_the_user():
    theirs = {"license": "llama3", "language": "en"}
    assert choose_licence("b", theirs, {}, has_text=False) == {"license": "llama3"}
    assert choose_licence("b", theirs, {"license": "mit"}, has_text=False) == {"license": "mit"}
    named = {"license": "other", "license_name": "n", "license_link": "LICENSE.txt"}
    assert choose_licence("b", named, {}, has_text=True)["license_link"] == "LICENSE"
    with pytest.raises(PublishError, match="none is guessed"):
        choose_licence("b", {"license_link": "x"}, {}, has_text=True)


def test_cells_cannot_break_a_table():
    assert markdown([["a"], ["b|c"]], "l") == "| a |\n|:--|\n| b\\|c |"


@pytest.mark.parametrize(
    "block",
    [
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghi")),
        "a: &a [*a]\n",
        "a: 2001-99-99\n",
        "a: " + "[" * 2000 + "]" * 2000 + "\n",
        "a: " + "x" * 300_000 + "\n",
    ],
    ids=["letters for billions", "itself", "no date", "deep", "long"],
)
def test_a_block_that_is_made_to_do_harm(block):
    with pytest.raises(PublishError, match=r"^README.md of ann/base: the block at the top of the card"):
        read_card(f"---\n{block}---\ntext", "README.md of ann/base")


def test_a_name_is_no_markup():
    assert plain("a_b-1.2") == "a_b-1.2"
    assert plain("<script>`[x](y)\n\x1b") == r"\<script\>\`\[x\](y) \\x1b"


@pytest.mark.parametrize(
    "values",
    [{"command": ["a\n```"]}, {"base": "\x1b[31m"}, {"revision": "`x`"}, {"versions": {"torch": 2}}, {"more": 1}],
)
def test_a_recipe_that_a_card_could_not_show(tmp_path, values):
    recipe = {"format": 1, "base": "b", "kind": "folder", "revision": "r:1", "card": {}, "command": [], "versions": {}}
    (tmp_path / RECIPE).write_text(json.dumps(recipe))
    assert read_recipe(tmp_path).base == "b"
    (tmp_path / RECIPE).write_text(json.dumps({**recipe, **values}))
    with pytest.raises(CheckpointError, match=rf"{RECIPE} is damaged"):
        read_recipe(tmp_path)
