"""A judgement that was paid for is on the disk, whatever happens next, and is not asked for again."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf.errors import JudgeError
from qllm_hf.evaluation.judge.cached import CachedJudge


class Judge:
    def __init__(self, name="echo", **attributes):
        self.name = name
        self.asked = 0
        vars(self).update(attributes)

    def ask(self, messages):
        self.asked += 1
        return f"{self.asked}: {messages[-1]['content']} 好 [[7]]"


class Gone(Judge):
    def ask(self, messages):
        raise JudgeError("the judge 'gone' did not answer.")


def prompt(text) -> list[dict[str, str]]:
    return [{"role": "user", "content": str(text)}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "judgements" / "cache.jsonl"  # the folder is not there either


def test_second_run_asks_nothing(path):
    first = CachedJudge(Judge(), path)
    judgements = [first.ask(prompt(n)) for n in range(5)]
    assert first.ask(prompt(3)) == judgements[3] and first.judge.asked == 5
    second = CachedJudge(Judge(), path)
    assert [second.ask(prompt(n)) for n in range(5)] == judgements
    assert second.judge.asked == 0 and second.knows(prompt(4)) and not second.knows(prompt(5))


def test_lines_can_be_read_by_people(path):
    CachedJudge(Judge(), path).ask(prompt("why?"))
    (row,) = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert row["judge"] == "echo" and row["messages"] == prompt("why?") and row["judgement"] == "1: why? 好 [[7]]"


def test_everything_that_changes_a_judgement_is_in_the_key(path):
    keys = {
        CachedJudge(judge, path).key(messages)
        for judge in (Judge(), Judge("other"), Judge(max_tokens=10))
        for messages in (prompt("a"), prompt("b"), [{"role": "system", "content": "a"}], prompt("a") * 2)
    }
    assert len(keys) == 12
    # the length that a judge without one has; and the order of keys in a message says nothing
    swapped = [{"content": "a", "role": "user"}]
    assert CachedJudge(Judge(max_tokens=2048), path).key(swapped) == CachedJudge(Judge(), path).key(prompt("a"))


def test_an_empty_judgement_is_one(path):
    judge = Judge()
    judge.ask = lambda messages: ""
    assert CachedJudge(judge, path).ask(prompt(1)) == ""
    assert CachedJudge(Gone("echo"), path).ask(prompt(1)) == ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "cache.jsonl"
    cached = CachedJudge(Judge(), path)
    for n in range(3):
        cached.ask(prompt(n))
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore:.*is damaged in line")  # half a line, and another one after it
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_loses_one_line_at_most(whole, tmp_path_factory, data):
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("cut") / "cache.jsonl"
    path.write_bytes(whole[:cut])
    cached = CachedJudge(Judge(), path)
    kept = sum(cached.knows(prompt(n)) for n in range(3))
    assert whole[:cut].count(b"\n") <= kept <= whole[:cut].count(b"\n") + 1
    for n in range(4):
        cached.ask(prompt(n))
    assert cached.judge.asked == 4 - kept
    # what was appended to the torn line is there too
    again = CachedJudge(Gone("echo"), path)
    assert [again.ask(prompt(n)) for n in range(4)] == [cached.ask(prompt(n)) for n in range(4)]


@pytest.mark.filterwarnings("ignore:.*is damaged in line")
@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[]\n", b"3\n", b"null\n", b'{"key": "x"}\n', b"\n", b"{\n"])
def test_other_lines_are_passed_over(path, whole, line):
    path.parent.mkdir()
    path.write_bytes(line + whole + line)
    assert all(CachedJudge(Gone("echo"), path).ask(prompt(n)) for n in range(3))


def test_half_a_surrogate_pair(path):
    """What a tokenizer may leave of a character when an answer is cut off."""
    judgement = CachedJudge(Judge(), path).ask(prompt("\ud83d"))
    assert CachedJudge(Gone("echo"), path).ask(prompt("\ud83d")) == judgement


def test_failure_says_what_is_kept(path):
    CachedJudge(Judge("gone"), path).ask(prompt(1))
    with pytest.raises(JudgeError, match=r"did not answer\. 1 judgement is kept in '.*cache\.jsonl'; the same command"):
        CachedJudge(Gone("gone"), path).ask(prompt(2))


WRITER = """
import sys
from qllm_hf.evaluation.judge.cached import CachedJudge

class Judge:
    name = "writer"
    def ask(self, messages):
        return messages[0]["content"] * 2000

cached = CachedJudge(Judge(), sys.argv[1])
sys.stdin.readline()  # both start together
for n in range(100):
    cached.ask([{"role": "user", "content": f"{sys.argv[2]}{n};"}])
"""


def test_two_processes_lose_no_line(path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name], stdin=subprocess.PIPE, cwd=path.parent.parent)
        for name in "ab"
    ]
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdin.close()
    # Each line is whole. A writer that looked while the other one wrote took its line for a torn one: an empty line.
    rows = [json.loads(line) for line in path.read_bytes().splitlines() if line]
    assert {row["messages"][0]["content"] for row in rows} == {f"{name}{n};" for name in "ab" for n in range(100)}
    cached = CachedJudge(Gone("writer"), path)
    assert cached.ask(prompt("b99;")) == "b99;" * 2000
