"""Judge prompts: what is filled in stays as it is, whatever braces it holds, and a wrong file is said to be one."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.judge.prompts import DEFAULT_PROMPTS, FIELDS, read_prompts
from qllm_hf.evaluation.judge.rating import UNPARSED, parse_rating

VALUES = {
    "question": "Q",
    "answer": "A",
    "question_1": "Q1",
    "answer_1": "A1",
    "question_2": "Q2",
    "answer_2": "A2",
    "ref_answer_1": "R1",
    "ref_answer_2": "R2",
}


def rows(**changes: str) -> list[dict[str, str]]:
    """The lines of a file with the smallest templates that are allowed; `changes` replaces templates."""
    shortest = {name: "{answer_2}" if "multi" in name else "{answer}" for name in FIELDS}
    shortest |= {name.replace("_", "-"): template for name, template in changes.items()}
    return [
        {"name": name, "system_prompt": f"system of {name}", "prompt_template": template}
        for name, template in shortest.items()
    ]


@pytest.fixture
def write(tmp_path):
    def write(lines: list[object]):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(params=["default", "study"])
def prompts(request):
    if request.param == "default":
        return DEFAULT_PROMPTS
    return read_prompts(request.getfixturevalue("shared") / "data" / "dialogue" / "mt_bench_judge_prompts.jsonl")


@pytest.mark.parametrize("name", FIELDS)
def test_everything_that_is_known_is_shown(prompts, name):
    system, user = prompts.messages(name, {field: f"value of {field}." for field in VALUES})
    assert (system["role"], user["role"]) == ("system", "user")
    shown = set(re.findall(r"value of (\w+)\.", user["content"]))
    assert shown == set(FIELDS[name])
    assert not re.search(r"\{\w+\}", user["content"])


@pytest.mark.parametrize("name", FIELDS)
def test_prompts_ask_for_what_is_read(prompts, name):
    """The example of the format has to be a rating, and nothing else in the prompt may look like one."""
    text = "\n".join(message["content"] for message in prompts.messages(name, VALUES))
    assert parse_rating(text) != UNPARSED
    assert len(re.findall(r"\[\[\d+\]\]", text)) == 1


def test_braces_stay(write):
    prompts = read_prompts(write(rows(single_v1='{question} {{x}} {} {0} {unknown} } { {answer} {"a": 1}')))
    values = VALUES | {"question": "{answer} {question}", "answer": "def f(): return {question: '{answer}'} \\1 \\g<0>"}
    (_, user) = prompts.messages("single-v1", values)
    assert user["content"] == (
        "{answer} {question} {{x}} {} {0} {unknown} } { def f(): return {question: '{answer}'} \\1 \\g<0> " + '{"a": 1}'
    )


@given(st.text(), st.text())
def test_any_answer_stays(question, answer):
    (_, user) = DEFAULT_PROMPTS.messages("single-v1", VALUES | {"question": question, "answer": answer})
    assert f"\n{question}\n" in user["content"]
    assert f"\n{answer}\n" in user["content"]


def test_no_empty_system_message(write):
    lines = rows()
    lines[0]["system_prompt"] = "  \n"
    messages = read_prompts(write(lines)).messages("single-v1", VALUES)
    assert [message["role"] for message in messages] == ["user"]


def test_digest_changes_with_the_prompts_and_only_with_them(write):
    digest = read_prompts(write(rows())).digest
    assert re.fullmatch("[0-9a-f]{12}", digest)
    assert read_prompts(write([*reversed(rows()), {"name": "pair-v2", "type": "pairwise"}])).digest == digest
    assert read_prompts(write(rows(single_v1="{answer}."))).digest != digest
    assert DEFAULT_PROMPTS.digest != digest


def test_line_separators_inside_strings(write, tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = rows(single_v1="a\u2028b {answer}")
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    assert "\u2028" in read_prompts(path).prompts["single-v1"].template


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (rows()[1:], "lack single-v1. A file needs all of: single-v1, single-math-v1"),
        ([], "lack single-v1, single-math-v1, single-v1-multi-turn, single-math-v1-multi-turn"),
        (rows(single_v1="{question}"), r"single-v1 does not show \{answer\}"),
        (rows(single_v1_multi_turn="{answer_1}"), r"single-v1-multi-turn does not show \{answer_2\}"),
        (rows(single_v1="{answer} {ref_answer_1}"), r"single-v1 has \{ref_answer_1\}, which it is not given"),
        ([{"name": []}], "no JSON lines"),
        ([{"name": "single-v1"}], "no JSON lines with name, system_prompt and prompt_template"),
        ([{"name": "single-v1", "system_prompt": "", "prompt_template": 3}, *rows()[1:]], "something else than text"),
    ],
)
def test_wrong_file(write, lines, message):
    with pytest.raises(ConfigError, match=message):
        read_prompts(write(lines))


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "text.jsonl").write_text("Be nice.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no JSON lines"):
        read_prompts(tmp_path / "text.jsonl")
