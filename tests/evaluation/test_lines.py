"""Files of JSON lines, written and read whatever happens in between."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf.evaluation.lines import append_line, read_lines, write_lines

VALUES = st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.integers(), st.floats(allow_nan=False)))


@settings(deadline=None)  # each write waits for the disk
@given(st.lists(VALUES, max_size=5), VALUES, st.data())
def test_a_file_cut_off_anywhere_keeps_the_lines_before_and_after(tmp_path_factory, values, later, data):
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    for value in values:
        append_line(path, value)
    content = path.read_bytes() if values else b""
    kept = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:kept])
    whole = content[:kept].count(b"\n")
    append_line(path, later)
    found = read_lines(path)
    assert found[:whole] == values[:whole] and found[-1] == later
    assert len(found) - whole in (1, 2)  # 2: only the line break was lost


@settings(deadline=None)  # each write waits for the disk
@given(st.lists(VALUES, max_size=5))
def test_a_whole_file_comes_back(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("lines")
    write_lines(folder / "file.jsonl", values)
    assert read_lines(folder / "file.jsonl") == values
    assert [path.name for path in folder.iterdir()] == ["file.jsonl"]


def test_half_a_character_and_readable_text(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": "\ud83d"}, {"text": "\u5b66\u4e60"}])
    assert read_lines(tmp_path / "a.jsonl") == [{"text": "\ud83d"}, {"text": "\u5b66\u4e60"}]
    assert "\u5b66\u4e60" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.jsonl"
    write_lines(path, [{"old": 1}])
    with pytest.raises(TypeError):
        write_lines(path, [{"new": 1}, {"new": object()}])
    assert read_lines(path) == [{"old": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_object_is_passed_over(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('[1]\n\n{"a": 1}\nnull\n{"b"')
    assert read_lines(path) == [{"a": 1}]
    assert read_lines(tmp_path / "none.jsonl") == []
