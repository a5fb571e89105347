"""Files of JSON lines, written and read whatever happens in between."""

import math
import os
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qllm_hf.errors import CheckpointError, QllmWarning
from qllm_hf.evaluation.lines import APPENDED, append_line, drop_half_line, read_lines, write_lines
from qllm_hf.evaluation.store import writing

KEYS = st.text(max_size=5).filter(lambda key: key != "crc32")
VALUES = st.dictionaries(KEYS, st.one_of(st.text(), st.integers(), st.floats(allow_nan=False)))


@pytest.mark.filterwarnings("ignore:.*is damaged in line")  # half a line, and another one after it
@given(st.lists(VALUES, max_size=5), VALUES, st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # each write waits for the disk
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


@given(st.lists(VALUES, max_size=5), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # each write waits for the disk
def test_half_a_line_is_cut_off_and_nothing_else(tmp_path_factory, values, data):
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    for value in values:
        append_line(path, value)
    content = path.read_bytes() if values else b""
    kept = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(kept)
    drop_half_line(path)
    found = read_lines(path)  # a warning, which is an error here, would be of a line that is damaged
    assert found == values[: len(found)] and len(found) - kept.count(b"\n") in (0, 1)
    assert kept.startswith(path.read_bytes())


def test_half_a_line_that_is_long(tmp_path):
    path = tmp_path / "file.jsonl"
    append_line(path, {"text": "x" * 300_000})
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-20])
    drop_half_line(path)
    assert path.read_bytes() == whole
    drop_half_line(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    drop_half_line(tmp_path / "pipe.jsonl")


def test_a_folder_of_results_is_mended_before_it_is_written_to(tmp_path):
    for name in (*APPENDED, "notes.jsonl"):
        append_line(tmp_path / name, {"a": 1})
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"a": 2, "crc')
    with writing(tmp_path):
        assert [read_lines(tmp_path / name, strict=True) for name in APPENDED] == [[{"a": 1}]] * len(APPENDED)
        assert (tmp_path / "notes.jsonl").read_bytes().endswith(b'"crc'), "it may be somebody's own"


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
    with pytest.warns(QllmWarning, match=r"damaged in line 1 \(it holds a list, .*, line 4 \(.*That does not count"):
        assert read_lines(path) == [{"a": 1}]
    with pytest.raises(CheckpointError, match=r"line 4 .*, line 5 \(.*Delete what is damaged"):
        read_lines(path, strict=True)
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_flipped_digit_is_found(tmp_path):
    path = tmp_path / "file.jsonl"
    append_line(path, {"value": 0.512, 1: (2, math.nan)})
    write_lines(tmp_path / "other.jsonl", [{"value": 0.512, "text": "\u5b66"}])
    append_line(path, {"value": 0.25})
    raw = path.read_bytes()
    assert read_lines(path)[1] == {"value": 0.25}
    path.write_bytes(raw.replace(b"0.512", b"0.712"))
    with pytest.warns(QllmWarning, match=r"file\.jsonl is damaged in line 1 \(its checksum is of something else\)"):
        assert read_lines(path) == [{"value": 0.25}]
    path.write_bytes(raw.replace(b'"crc32"', b'"other"'))  # of an older version, or changed on purpose
    assert [line["value"] for line in read_lines(path)] == [0.512, 0.25]


@given(st.data())
def test_no_flipped_bit_changes_a_value_in_silence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("lines") / "file.jsonl"
    values = [{"scheme": "W4", "value": 0.512, "items": 400}, {"scheme": "W3", "value": -1.25e-3, "items": None}]
    write_lines(path, values)
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_lines(path)
    known = [{key: line[key] for key in ("scheme", "value", "items") if key in line} for line in found]
    assert all(line in values for line in known)
    assert len(found) == 2 or caught


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "file.jsonl")
    with pytest.raises(CheckpointError, match=r"file\.jsonl"):
        read_lines(tmp_path / "file.jsonl")


def test_another_file_is_not_read_to_its_end(tmp_path):
    (tmp_path / "file.jsonl").write_text("- a\n" * 1001)
    with pytest.raises(CheckpointError, match=r"more than 1000 lines, the first is line 1 .* another file"):
        read_lines(tmp_path / "file.jsonl")
