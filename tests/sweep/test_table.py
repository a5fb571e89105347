"""A sweep as text says what its means are of, and what a zero hides."""

from made_results import add, add_size

from qllm_hf.evaluation.statistics import Estimate
from qllm_hf.results import read_results
from qllm_hf.sweep.table import percent, running, summary, uneven

GOOD = [1.0] * 20


def test_summary(tmp_path):
    for scheme, right in (("FP16", 20), ("W4", 20), ("W2", 10)):
        add(tmp_path, scheme, "mini_cloze", [1.0] * right + [0.0] * (20 - right))
        add_size(tmp_path, scheme)
    lines = summary(read_results(tmp_path)).splitlines()
    assert lines[1].split() == ["FP16", "16.00", "2.00", "kB", "64", "B", "100"]
    assert lines[2].split()[-1] == "100.0±0.0" and lines[3].split()[-1].startswith("50.0±11")
    assert "of 20 items, up to 15.0%" in " ".join(lines)
    assert "different tasks" not in " ".join(lines)


def test_means_of_different_tasks_are_named(tmp_path):
    for scheme in ("FP16", "W8", "W4"):
        add(tmp_path, scheme, "mini_lines_256", GOOD)
    add(tmp_path, "FP16", "mini_lines_512", GOOD)
    add(tmp_path, "W8", "mini_lines_512", GOOD)
    results = read_results(tmp_path)
    assert uneven(results) == " Means are of different tasks: W4 without mini_lines_512."
    assert "W4 without mini_lines_512" in " ".join(summary(results).split())


def test_running_table(tmp_path):
    add(tmp_path, "FP16", "mini_cloze", GOOD)
    text = running(["FP16", "W4"], ["mini_cloze", "mini_ethics"], read_results(tmp_path).records, {"W4": "why"})
    assert [line.split() for line in text.splitlines()] == [
        ["nlp", "tasks"],
        ["FP16", "1.000", "1/2"],
        ["W4", ".", "failed"],
    ]


def test_percent():
    assert percent(None) == "-"
    assert percent(Estimate(0.987, 0.0041)) == "98.7±0.4"
    assert percent(Estimate(1.0, float("nan"))) == "100.0"
