"""Rows are read whole or not at all, and what is wrong with them is one sentence that says where."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation import sources
from qllm_hf.evaluation.questions import dataset, documents_of, prediction, questions_of
from qllm_hf.evaluation.registry import TASKS
from qllm_hf.evaluation.sources import digest_of, read_jsonl, read_rows, read_shots
from qllm_hf.evaluation.task import Source

SOURCE = Source(file="group/rows", columns=("question", "answer"), hub="somebody/rows", shots_file="group/shots")
GOOD = [{"question": "one?", "answer": 1}, {"question": "two?", "answer": 2}]
IN_ONE = '{"question": "one?", "answer": 1}\n'


def folder_with(folder: Path, data: bytes | str, name: str = "group/rows.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def lines_of(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def complaint(folder: Path, data: bytes | str) -> str:
    """What is said of a file with this content."""
    with pytest.raises(ConfigError) as refused:
        read_rows("qllm_rows", SOURCE, folder_with(folder, data))
    message = str(refused.value)
    assert "\n" not in message and message.endswith((".", "?"))
    return message


def test_rows_come_in_the_order_of_their_file(tmp_path):
    found = read_rows("qllm_rows", SOURCE, folder_with(tmp_path, lines_of(GOOD)))
    assert (found.rows, found.origin) == (GOOD, "file group/rows.jsonl")


@pytest.mark.parametrize(
    ("data", "phrases"),
    [
        ("", ("is empty", "one JSON object per line")),
        ("\n  \n\t\r\n", ("is empty",)),
        (b"\xef\xbb\xbf", ("is empty",)),
        (IN_ONE.encode() + "déjà vu\n".encode("latin-1"), ("line 2", "0xe9", "no UTF-8", "iconv -f latin1")),
        (b"\xff\xfe" + IN_ONE.encode("utf-16-le"), ("line 1", "0xff", "no UTF-8")),
        (IN_ONE + IN_ONE[:12], ("line 2 is no JSON", "ends in the middle", "copied in full?")),
        (IN_ONE + "nonsense\n" + IN_ONE, ("line 2 is no JSON (Expecting value).",)),
        (f"\n\n{IN_ONE}[1, 2]\n", ("line 4", "no JSON object but a list")),
        ("12\n", ("line 1", "no JSON object but a int")),
        ("null\n", ("line 1", "no JSON object but a NoneType")),
        (IN_ONE + '{"Question": "two?", "answer": 2}\n', ("line 2 has no 'question'", "Did you mean 'Question'?")),
        (IN_ONE + '{"text": "two?"}\n', ("line 2 has no 'question'.", "It has 'text'", "needed: 'question', 'answer'")),
        ("{}\n", ("line 1 has no 'question'.", "It has nothing")),
    ],
    ids=[
        "empty",
        "white space",
        "nothing but a byte order mark",
        "latin-1",
        "utf-16",
        "truncated",
        "bad line in the middle",
        "list",
        "number",
        "null",
        "misspelt column",
        "missing columns",
        "no columns",
    ],
)
def test_damaged_files(data, phrases, tmp_path):
    message = complaint(tmp_path, data)
    assert all(phrase in message for phrase in (str(tmp_path / "group" / "rows.jsonl"), *phrases)), message


def test_only_a_last_line_is_called_cut(tmp_path):
    assert "copied in full" not in complaint(tmp_path, "nonsense\n" + IN_ONE)
    assert "Did you mean" not in complaint(tmp_path, '{"text": 1}\n')


@pytest.mark.parametrize("line", ["[" * 100_000, '{"question": ' + "9" * 5000 + "}"], ids=["too deep", "too long"])
def test_what_python_refuses_is_no_json_either(line, tmp_path):
    assert "line 2 is no JSON" in complaint(tmp_path, IN_ONE + line + "\n")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_separators_inside_of_strings_end_no_line(separator, tmp_path):
    row = {"question": f"one{separator}two", "answer": separator}
    text = json.dumps(row, ensure_ascii=False) + "\n"
    assert len(text.splitlines()) > 1 or separator in "\x0b\x0c", "as splitlines would"
    assert read_rows("t", SOURCE, folder_with(tmp_path, text * 2)).rows == [row, row]


@pytest.mark.parametrize(
    "data",
    [
        lines_of(GOOD).replace("\n", "\r\n"),
        "\ufeff" + lines_of(GOOD),
        lines_of(GOOD).rstrip("\n"),
        "\n" + lines_of(GOOD).replace("\n", "\n\n"),
    ],
    ids=["CRLF", "byte order mark", "no last newline", "empty lines"],
)
def test_harmless_differences_between_files(data, tmp_path):
    found = read_rows("t", SOURCE, folder_with(tmp_path, data))
    assert found.rows == GOOD


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=4), min_size=1, max_size=5), as_ascii=st.booleans())
def test_what_json_writes_is_read_back(rows, as_ascii, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=as_ascii) + "\n" for row in rows), "utf-8")
    found = read_jsonl(path)
    assert found == rows
    assert digest_of(found) == digest_of(rows)


def test_a_digest_is_of_the_content():
    digest = digest_of(GOOD)
    assert digest_of([dict(reversed(row.items())) for row in GOOD]) == digest
    assert len(digest) == 12
    others = [
        GOOD[::-1],
        GOOD[:1],
        [*GOOD, GOOD[0]],
        [GOOD[0], {**GOOD[1], "answer": "2"}],
        [GOOD[0], {**GOOD[1], "more": None}],
    ]
    assert len({digest, *(digest_of(rows) for rows in others)}) == 1 + len(others)
    assert digest_of([{"text": "\ud800"}]), "even of text that is no Unicode"


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        ConfigError, match=r"there is no data folder '.*nowhere'\. Give the folder that holds basic_nlp"
    ):
        read_rows("t", SOURCE, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no data folder"):
        read_rows("t", SOURCE, folder_with(tmp_path, IN_ONE) / "group" / "rows.jsonl")


def test_a_file_that_is_not_there(tmp_path):
    folder_with(tmp_path, IN_ONE, "group/rowz.jsonl")
    with pytest.raises(ConfigError) as refused:
        read_rows("qllm_rows", SOURCE, tmp_path)
    assert "qllm_rows: the data folder" in str(refused.value)
    assert "has no group/rows.jsonl. Did you mean 'rowz'?" in str(refused.value)
    (tmp_path / "group" / "rowz.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"has no group/rows\.jsonl\. Put it there, leave the task out, or leave out"):
        read_rows("qllm_rows", SOURCE, tmp_path)


def test_examples_are_read_like_rows(tmp_path):
    folder_with(tmp_path, lines_of(GOOD), "group/shots.jsonl")
    found = read_shots("qllm_rows", SOURCE, tmp_path)
    assert (found.rows, found.origin) == (GOOD, "file group/shots.jsonl")
    folder_with(tmp_path, '{"question": "x"}\n', "group/shots.jsonl")
    with pytest.raises(ConfigError, match=r"shots\.jsonl', line 1 has no 'answer'"):
        read_shots("qllm_rows", SOURCE, tmp_path)
    (tmp_path / "group" / "shots.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"has no group/shots\.jsonl"):
        read_shots("qllm_rows", SOURCE, tmp_path)


def test_rows_are_made_where_no_file_is(tmp_path):
    made = read_rows("t", SOURCE, tmp_path, lambda: GOOD)
    assert (made.rows, made.origin) == (GOOD, "generated")
    assert read_rows("t", SOURCE, None, lambda: GOOD).origin == "generated"
    folder_with(tmp_path, lines_of(GOOD[:1]))
    assert read_rows("t", SOURCE, tmp_path, lambda: GOOD).rows == GOOD[:1], "a file comes first"
    with pytest.raises(ConfigError, match="no data folder"):
        read_rows("t", SOURCE, tmp_path / "nowhere", lambda: GOOD)


@pytest.mark.skipif(os.environ["HF_HUB_OFFLINE"] != "1", reason="the Hub can be reached")
@pytest.mark.parametrize("task", ["qllm_piqa", "qllm_ceval", "qllm_mmlu"])
def test_without_a_network_the_way_out_is_a_folder(task, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    source = TASKS[task].source
    with pytest.raises(ConfigError) as refused:
        read_rows(task, source, None)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"{task}: the Hub did not give {source.hub!r} (")
    assert f"give a data folder with {source.file}.jsonl (--data-dir)." in message


@pytest.mark.parametrize("error", [ConnectionError(), OSError("first line\nsecond line"), ValueError(" ")])
def test_whatever_the_hub_raises_is_one_sentence(error, monkeypatch):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(sources, "_loaded", refuse)
    with pytest.raises(
        ConfigError, match=rf"t: the Hub did not give 'somebody/rows' \({type(error).__name__}"
    ) as found:
        read_rows("t", SOURCE, None)
    assert "\n" not in str(found.value) and "second" not in str(found.value)
    assert found.value.__cause__ is error


def test_rows_of_the_hub_are_checked(monkeypatch):
    monkeypatch.setattr(sources, "_loaded", lambda *arguments: GOOD)
    found = read_rows("t", SOURCE, None)
    assert (found.rows, found.origin) == (GOOD, "hub somebody/rows validation")
    for rows, missing in (([], "rows"), ([{"question": "one?"}], "'answer'")):
        monkeypatch.setattr(sources, "_loaded", lambda *arguments, rows=rows: rows)
        with pytest.raises(ConfigError, match=f"'somebody/rows' on the Hub has no {missing} any more"):
            read_rows("t", SOURCE, None)


def test_every_configuration_is_a_subject(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda hub: ["law", "art"])
    monkeypatch.setattr(
        datasets, "load_dataset", lambda hub, config, split: [{"question": f"{config} {split}", "answer": 0}]
    )
    source = Source(columns=("question", "answer"), hub="somebody/exams", config="*", split="val")
    assert read_rows("t", source, None).rows == [
        {"subject": "law", "question": "law val", "answer": 0},
        {"subject": "art", "question": "art val", "answer": 0},
    ]


@pytest.mark.parametrize("task", ["qllm_chid", "qllm_gaokao", "qllm_topics", "qllm_multidoc_qa"])
def test_what_the_hub_does_not_have_is_at_its_authors(task):
    source = TASKS[task].source
    with pytest.raises(ConfigError) as refused:
        read_rows(task, source, None)
    message = str(refused.value)
    assert f"{task}: this data set is not on the Hub. Get it from https://" in message
    for phrase in (source.home, f"{source.file}.jsonl", "--data-dir", *map(repr, source.columns)):
        assert phrase in message


def test_a_row_that_its_benchmark_does_not_know_is_said_in_one_sentence(tmp_path):
    row = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}
    folder_with(tmp_path, lines_of([row]), "emergent/arc_easy.jsonl")
    with pytest.raises(ConfigError, match=r"qllm_arc_easy: a row of file emergent/arc_easy\.jsonl is not as its bench"):
        documents_of("qllm_arc_easy", tmp_path)
    folder_with(tmp_path, lines_of([{**row, "answerKey": "B"}]), "emergent/arc_easy.jsonl")
    (document,) = documents_of("qllm_arc_easy", tmp_path)[0]
    assert (document["id"], document["rule"], document["label"]) == (0, "choice", 1)


def test_examples_leave_something_to_ask(shared):
    """The examples of this benchmark come from its own 350 rows."""
    assert len(documents_of("qllm_strategyqa", shared / "data", shots=349)[0]) == 1
    with pytest.raises(ConfigError, match=r"qllm_strategyqa: shots=350 takes all rows as examples"):
        documents_of("qllm_strategyqa", shared / "data", shots=350)


def test_tasks_of_lm_eval_have_no_documents_here(shared):
    with pytest.raises(ConfigError, match="piqa: its questions are in a file of lm_eval"):
        documents_of("piqa", shared / "data")


def test_the_datasets_that_the_task_files_name(shared):
    """`custom_dataset` of a YAML file gives the documents, and that of lm_eval's own tasks their rows."""
    documents, _ = documents_of("qllm_piqa", shared / "data")
    assert dataset("qllm_piqa", str(shared / "data"), metadata={})["test"].to_list() == documents
    parts, found, shots = questions_of("piqa", shared / "data")
    assert (parts, shots) == ({"test": found.rows}, 0)
    parts, _, shots = questions_of("gsm8k", shared / "data")
    assert ({name: len(part) for name, part in parts.items()}, shots) == ({"test": 400, "train": 64}, 5)
    assert questions_of("mini_cloze", shared / "data") is questions_of("piqa") is None


def test_examples_are_counted_as_they_are_shown(shared):
    data = shared / "data"
    assert questions_of("qllm_piqa", data, shots=10).shots == 0  # a benchmark without examples
    assert questions_of("qllm_mmlu", data, shots=3).shots == 3
    assert questions_of("qllm_mmlu", data).shots == 5
    with pytest.raises(ConfigError, match=r"qllm_mmlu: shots=10, and there are 5 examples of 'abstract_algebra'"):
        questions_of("qllm_mmlu", data, shots=10)


def test_a_folder_in_the_home_folder(shared, monkeypatch):
    monkeypatch.setenv("HOME", str(shared))
    assert documents_of("qllm_mmlu", "~/data")[1].rows
    assert set(questions_of("gsm8k", "~/data").parts) == {"test", "train"}
    with pytest.raises(ConfigError, match="no data folder"):
        documents_of("qllm_mmlu", "~/dada")


class Found(tuple):
    """A log-likelihood with its tokens."""

    def __new__(cls, value, tokens):
        pair = super().__new__(cls, (value, False))
        pair.tokens = tokens
        return pair


def test_a_choice_is_the_text_with_the_lowest_loss_per_token():
    doc = {"choices": ["a", "b"], "prompt": "Q"}
    assert prediction(doc, [Found(-4.0, 4), Found(-3.0, 2)]) == "0", "1 against 1.5 a token"
    assert prediction(doc, [Found(-4.0, 4), Found(-1.5, 2)]) == "1"
    # without a prompt the token in front counts: 4/5 and 1.5/3 instead of 4/4 and 1.5/2
    assert prediction({**doc, "prompt": ""}, [Found(-4.0, 4), Found(-2.5, 2)]) == "0"
    assert prediction({**doc, "prompt": ""}, [Found(-4.0, 1), Found(-7.0, 2)]) == "0"
    assert prediction(doc, [Found(-4.0, 1), Found(-7.0, 2)]) == "1", "which decides here"
    with pytest.raises(ConfigError, match="does not count tokens"):
        prediction(doc, [(-1.0, False), (-2.0, False)])
    assert prediction({"choices": [], "prompt": "Q"}, ["text"]) == "text"
