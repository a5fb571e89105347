"""Cells of the grid and what is behind them."""

import math
import re

import pytest
from made_results import add

from qllm_hf.demo.grid import grid_html, measured_grid, published_grid, published_models
from qllm_hf.demo.items import changed_items, items_html, published_html, tasks_html, tasks_of
from qllm_hf.errors import ConfigError
from qllm_hf.figures.figure import Figure, Missing
from qllm_hf.results import read_results

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    before, after = [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]
    wrote = [{"prompt": f"{EVIL} {number}", "prediction": f"before {number}"} for number in range(4)]
    writes = [{"prompt": f"{EVIL} {number}", "prediction": f"after {number} {EVIL}"} for number in range(4)]
    add(folder, "FP16", "mini_arithmetic", before, wrote)
    add(folder, "W2", "mini_arithmetic", after, writes)
    for scheme in ("FP16", "W2"):
        add(folder, scheme, "mini_cloze", before)
        add(folder, scheme, "mini_lines_256", before)
    return read_results(folder)


def test_cells_are_what_the_results_say(results):
    grid = measured_grid(results)
    assert grid.schemes == ("W2",)
    assert grid.abilities == ("nlp", "emergent", "long")
    assert grid.cells["W2", "emergent"] == results.recovery("W2")["emergent"]
    assert isinstance(grid.radars(), Figure)


def test_a_cell_is_a_button_that_says_what_its_colour_means(results):
    page = grid_html(measured_grid(results), ("W2", "nlp"))
    buttons = re.findall(r"<button.*?</button>", page)
    assert len(buttons) == 3
    assert 'aria-label="W2, nlp: 100.0 percent left, plus or minus 0.0"' in buttons[0]
    assert [re.search(r'aria-pressed="(\w+)"', each)[1] for each in buttons] == ["true", "false", "false"]


def test_items_that_got_worse_have_both_answers(results):
    found = changed_items(results, "W2", "mini_arithmetic")
    assert [(item.id, item.before, item.worth) for item in found] == [
        (1, "before 1", (1.0, 0.0)),
        (2, "before 2", (1.0, 0.0)),
    ]
    page = items_html(results, "W2", "mini_arithmetic")
    assert "2 of 4 items got worse under W2" in page
    assert "before 1" in page and "after 1" in page and "after 3" not in page
    assert "<script" not in page and "&lt;script" in page
    assert "no item got worse" in items_html(results, "W2", "mini_cloze")


def test_tasks_of_a_cell_stand_beside_the_float_model(results):
    assert tasks_of(results, "W2", "emergent") == ("mini_arithmetic",)
    page = tasks_html(results, "W2", "emergent")
    assert "0.750" in page and "0.500" in page and "-0.250" in page
    assert "within noise" in tasks_html(results, "W2", "nlp")


def test_results_without_a_float_model_say_so(tmp_path):
    add(tmp_path, "W2", "mini_cloze", [1.0, 0.0])
    with pytest.raises(ConfigError, match="compared with the float model"):
        measured_grid(read_results(tmp_path))


def test_every_model_that_is_offered_has_a_grid():
    assert "LLaMA2-7B" in published_models()
    for model in published_models():
        grid = published_grid(model)
        assert len(grid.abilities) >= 3
        assert all(math.isnan(each.stderr) for each in grid.cells.values())
        assert not isinstance(grid.radars(), Missing)


def test_a_published_cell_shows_its_values():
    """LLaMA2-7B on LAMBADA, as the study's files have it."""
    page = published_html("LLaMA2-7B", "W3", "nlp")
    assert "73.32" in page and "66.61" in page
    with pytest.raises(ConfigError):
        published_grid("/etc/passwd")
