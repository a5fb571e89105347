"""Pictures show the numbers of the results, with their errors, and say why they are missing."""

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import add, add_size

from qllm_hf.figures.abilities import heat_map, radars, task_heat_map
from qllm_hf.figures.bits import loss_by_bits
from qllm_hf.figures.figure import Missing, save_figures
from qllm_hf.figures.gallery import figures_of
from qllm_hf.figures.length import loss_by_length, score_by_position
from qllm_hf.figures.margins import margin_histogram, rank_matrix, ranks, spearman
from qllm_hf.figures.memory import even_storage, memory_curves
from qllm_hf.results import read_results

GOOD = [1.0] * 20
KEPT = {"W8": 20, "W4": 18, "W3": 10, "KV4": 16, "KV2": 4, "W4KV4": 15}
TASKS = ("mini_cloze", "mini_rules", "mini_lines_256", "mini_lines_512")


def likelihoods(margins: list[float]) -> list[dict]:
    """Two choices of two tokens each, the second one right by so many nats per token."""
    return [{"likelihoods": [[-8.0 - 2 * margin, 2], [-8.0, 2]], "label": 1} for margin in margins]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for scheme, right in {"FP16": 20, **KEPT}.items():
        values = [1.0] * right + [0.0] * (20 - right)
        for task in TASKS:
            # the first and the last tenth of the text in turns
            places = [{"position": float(number % 2)} for number in range(20)]
            add(folder, scheme, task, values, places if "lines" in task else None)
        margins = [0.5 + number / 10 if value else -0.5 for number, value in enumerate(values)]
        add(folder, scheme, "mini_calibration", values, likelihoods(margins))
        bits = 16 if scheme.startswith(("FP", "KV")) else int(scheme[1])
        kv = int(scheme[-1]) if "KV" in scheme else 16
        add_size(folder, scheme, bits_per_weight=bits + 0.19, weight_bytes=125 * bits, kv=((4 * kv, None),))
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return read_results(folder)


def table(figure) -> dict:
    """{first cell: {column: cell}}"""
    head, *rows = figure.rows
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_heat_map_holds_recoveries(results):
    found = table(heat_map(results))
    assert set(found) == set(KEPT) and set(found["W3"]) == {"nlp", "emergent", "long"}
    assert found["W8"]["nlp"] == "100.0±0.0"
    assert found["W3"]["long"].startswith("50.0±")
    kept = results.recovery("W4")["nlp"]
    assert found["W4"]["nlp"] == f"{100 * kept.value:.1f}±{100 * kept.stderr:.1f}"


def test_heat_map_is_drawn_from_0_to_100_whatever_the_scores_are(results):
    canvas = heat_map(results).draw()
    (image,) = canvas.axes[0].get_images()
    assert image.get_clim() == (0, 100)
    texts = {text.get_text() for text in canvas.axes[0].texts}
    assert "100.0±0.0" in texts and len(canvas.axes[0].texts) == len(KEPT) * 3


def test_task_heat_map_has_a_column_for_each_task(results):
    figure = task_heat_map(results)
    assert set(figure.rows[0][1:]) == {*TASKS, "mini_calibration"}
    assert [label.get_text() for label in figure.draw().axes[0].get_yticklabels()] == list(KEPT)


def test_radars_have_the_same_axes(results):
    canvas = radars(results).draw()
    assert len(canvas.axes) == len(KEPT)
    assert {axis.get_ylim() for axis in canvas.axes} == {(0, 110)}
    by_name = {axis.get_title(): axis for axis in canvas.axes}
    assert by_name["W3"].lines[1].get_ydata()[0] == pytest.approx(50)


def test_loss_by_bits_has_two_panels(results):
    figure = loss_by_bits(results)
    panels = {row[0] for row in figure.rows[1:]}
    assert len(panels) == 2
    assert [row[1] for row in figure.rows[1:]] == ["W3", "W4", "W8", "KV2", "KV4"], "joint schemes are in neither"
    canvas = figure.draw()
    assert len(canvas.axes) == 2
    line = canvas.axes[0].containers[0]
    assert list(line[0].get_xdata()) == [3.19, 4.19, 8.19]
    assert list(line[0].get_ydata()) == pytest.approx([50, 10, 0])
    assert line.has_yerr


def test_memory_curves(results):
    found = table(memory_curves(results))
    assert found["FP16"]["1,024 tokens"] == f"{(2000 + 64 * 1024) / 1000:.2f} kB"
    assert found["KV2"]["1,024 tokens"] == f"{(2000 + 8 * 1024) / 1000:.2f} kB"
    axis = memory_curves(results).draw().axes[0]
    for line in axis.lines:
        assert all(before < after for before, after in pairwise(line.get_ydata()))


def test_even_storage_groups_what_is_about_even(results):
    figure = even_storage(results)
    # at 31 tokens the float cache is as large as the weights: W8 1000 + 1984, W4 500 + 1984, KV4 2000 + 496 ...
    assert [row[1] for row in figure.rows[1:]] == ["KV2", "W3", "W4", "KV4"]
    assert {row[0] for row in figure.rows[1:]} == {"2.25 kB"}
    assert all(patch.get_height() <= 100 for patch in figure.draw().axes[0].patches)


def test_loss_by_length(results):
    rows = loss_by_length(results).rows
    assert rows[1][:3] == ("mini_lines", "W8", "256") and len(rows) == 1 + 2 * len(KEPT)
    lines = loss_by_length(results).draw().axes[0].containers
    assert list(lines[2][0].get_ydata()) == pytest.approx([50, 50])


def test_score_by_position(results):
    head, *rows = score_by_position(results).rows
    w3 = next(row for row in rows if row[1] == "W3")
    assert w3[0] == "mini_lines_512", "the longest"
    # 10 of 20 are right, the even ones at the beginning
    assert w3[head.index("0-10 %")].startswith("50.0") and w3[head.index("90-100 %")].startswith("50.0")
    assert w3[head.index("40-50 %")] == "-"


def test_margins_count_what_changed(results):
    figure = margin_histogram(results)
    found = table(figure)
    assert "mini_calibration" in figure.title
    assert (found["W3"]["became wrong"], found["W3"]["became right"], found["W3"]["items"]) == ("10", "0", "20")
    assert found["FP16"]["became wrong"] == "0"
    assert found["W3"]["right"].startswith("50.0±")
    assert found["FP16"]["mean margin"].startswith(f"{0.5 + sum(range(20)) / 200:.3f}")


def test_margins_of_a_task_that_compares_something_else_are_not_shown(folder, tmp_path):
    """The mark says wrong where the losses say right: a task that compares sums, or whole texts."""
    for scheme in ("FP16", "W4"):
        add(tmp_path, scheme, "mini_calibration", [0.0] * 20, likelihoods([1.0] * 20))
    assert isinstance(margin_histogram(read_results(tmp_path)), Missing)


def test_rank_matrix(results):
    _, *rows = rank_matrix(results).rows
    matrix = [[float(cell) for cell in row[1:]] for row in rows]
    assert len(matrix) == len(results.schemes)
    for line, values in enumerate(matrix):
        assert values[line] == 1.0
        assert values == [other[line] for other in matrix], "symmetric"


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30))
def test_ranks_are_means_of_places(values):
    found = ranks(values)
    assert math.isclose(sum(found), len(values) * (len(values) + 1) / 2)
    for one, rank in zip(values, found, strict=True):
        below, same = sum(other < one for other in values), values.count(one)
        assert rank == below + (same + 1) / 2


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=30, unique=True), st.randoms())
def test_spearman(values, random):
    one = dict(enumerate(values))
    assert spearman(one, {key: value**3 + 5 for key, value in one.items()}) == pytest.approx(1.0)
    assert spearman(one, {key: -value for key, value in one.items()}) == pytest.approx(-1.0)
    shuffled = values.copy()
    random.shuffle(shuffled)
    other = dict(enumerate(shuffled))
    assert -1.0 - 1e-9 <= spearman(one, other) <= 1.0 + 1e-9
    assert spearman(one, other) == pytest.approx(spearman(other, one))
    assert spearman(one, dict.fromkeys(one, 1.0)) is None


def test_known_rank_correlation():
    """The textbook's formula 1 - 6 sum d^2 / (n (n^2 - 1)), without ties."""
    one, other = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, {"a": 2, "b": 1, "c": 4, "d": 3, "e": 5}
    assert spearman(one, other) == pytest.approx(1 - 6 * 4 / (5 * 24))


def test_what_cannot_be_drawn_says_why(tmp_path):
    add(tmp_path, "FP16", "mini_ethics", GOOD)
    figures, missing = figures_of(read_results(tmp_path))
    assert figures == [] and len(missing) == 10
    assert all(each.reason for each in missing)
    assert "no scheme was measured next to FP16" in missing[0].reason


def test_files_are_a_picture_twice_and_its_numbers(results, tmp_path):
    figures, missing = figures_of(results)
    assert missing == []
    written = save_figures(figures, tmp_path)
    assert {path.suffix for path in written} == {".svg", ".png", ".csv"} and len(written) == 30
    assert sorted(tmp_path.iterdir()) == sorted(written), "nothing half-written is left"
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        elif path.suffix == ".svg":
            assert ElementTree.fromstring(path.read_bytes()).tag.endswith("svg")
    first = {path: path.read_bytes() for path in written if path.suffix != ".png"}
    save_figures(figures, tmp_path)
    assert {path: path.read_bytes() for path in first} == first, "the same results give the same files"
    assert (tmp_path / "abilities.csv").read_text().splitlines()[0] == "scheme,nlp,emergent,long"
