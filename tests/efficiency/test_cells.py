"""Cells come back from their file as they were, and only where they are the same measurement."""

import json
from dataclasses import replace

import pytest

from qllm_hf.efficiency.cells import Case, Cell, Cells, Times
from qllm_hf.errors import CheckpointError
from qllm_hf.evaluation.lines import CELLS

MADE = {"model": "m", "hardware": {"threads": "1"}}
CASE = Case(2, 16, 4)
TIMES = Times((1.0, 2.0), (0.1, 0.2), (1.3, 2.6))
CELL = Cell("W4", CASE, "ok", times=TIMES, baseline=TIMES, peak_bytes=7, implementations=("x",), made=MADE)


def test_a_cell_comes_back_as_it_was():
    for cell in (CELL, Cell("KV4", CASE, "oom", "full")):
        assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_cells_are_found_again(tmp_path):
    cells = Cells(tmp_path / "new", MADE)
    assert cells.find("W4", CASE) is None
    cells.add(CELL)
    again = Cells(tmp_path / "new", MADE)
    assert again.find("W4", CASE) == CELL
    assert (again.kept, again.is_finished("W4", CASE)) == (1, True)
    assert not again.is_finished("W4", replace(CASE, input=17))
    assert not again.is_finished("W8", CASE)


def test_another_machine_measures_again(tmp_path):
    Cells(tmp_path, MADE).add(CELL)
    other = Cells(tmp_path, {**MADE, "hardware": {"threads": "2"}})
    assert (other.kept, other.find("W4", CASE)) == (0, None)


def test_what_was_only_predicted_is_tried_again(tmp_path):
    Cells(tmp_path, MADE).add(replace(CELL, status="oom_predicted", times=None, baseline=None))
    again = Cells(tmp_path, MADE)
    assert (again.kept, again.is_finished("W4", CASE)) == (0, False)
    again.add(replace(CELL, status="oom", times=None, baseline=None))
    assert Cells(tmp_path, MADE).is_finished("W4", CASE)


@pytest.mark.filterwarnings("ignore:.*is damaged in line")  # half a line, and another one after it
def test_what_a_kill_left_of_a_line_is_not_read(tmp_path):
    Cells(tmp_path, MADE).add(CELL)
    with (tmp_path / CELLS).open("a") as file:
        file.write(json.dumps(replace(CELL, scheme="W8").to_json())[:200])
    cells = Cells(tmp_path, MADE)
    assert cells.find("W8", CASE) is None
    cells.add(replace(CELL, scheme="W3"))
    again = Cells(tmp_path, MADE)
    assert [again.is_finished(scheme, CASE) for scheme in ("W4", "W8", "W3")] == [True, False, True]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = Cells(None, MADE)
    cells.add(CELL)
    assert cells.find("W4", CASE) == CELL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"scheme": "W4"}, "no cell of a benchmark: it has 'scheme'"),
        ({**CELL.to_json(), "format": 2}, "newer qllm_hf"),
        ({}, "it has nothing"),
    ],
)
def test_lines_that_are_none(entry, message):
    with pytest.raises(CheckpointError, match=message):
        Cell.from_json(entry)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        Cells(tmp_path / "file", MADE)
