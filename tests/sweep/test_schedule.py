"""What says most for the least work comes first."""

from types import SimpleNamespace

import pytest
from made_results import record_of

from qllm_hf.evaluation.statistics import Estimate
from qllm_hf.sweep.schedule import by_cost, by_promise, expected_work, is_informative, probes

GOOD, GUESSING = [1.0] * 20, [1.0, 0.0, 0.0] * 7


def test_work_grows_with_length_items_and_writing():
    lines = [expected_work(f"mini_lines_{tokens}", None, None, None) for tokens in (256, 512, 1024, 2048)]
    assert lines == sorted(lines) and lines[-1] == 8 * lines[0]
    assert expected_work("mini_cloze", None, None, 10) == expected_work("mini_cloze", None, None, 100) / 10
    assert expected_work("mini_description", None, None, None) > expected_work("mini_cloze", None, None, None)


def test_work_of_benchmarks_with_rows(shared):
    data = shared / "data"
    piqa, gsm8k = (expected_work(task, data, None, 20) for task in ("qllm_piqa", "qllm_gsm8k"))
    assert 0 < piqa < gsm8k < float("inf")
    assert expected_work("qllm_lines_200", data, None, 5) > 5 * 200 * 4, "a line is more than four tokens"


def test_probes_take_the_first_task_of_each_ability_that_can_lose():
    scores = {
        "mini_in_context": GUESSING,
        "mini_rules": GOOD,
        "mini_cloze": GOOD,
        "mini_description": GOOD,
        "mini_ethics": GUESSING,
    }
    asked = []

    def measure(task):
        asked.append(task)
        return record_of("FP16", task, scores[task])

    found = probes(["mini_in_context", "mini_cloze", "mini_rules", "mini_description", "mini_ethics"], measure)
    assert found == ["mini_cloze", "mini_rules", "mini_ethics"], "ethics has nothing better"
    assert asked == ["mini_cloze", "mini_in_context", "mini_rules", "mini_ethics"]


def test_informative():
    assert is_informative(record_of("FP16", "mini_ethics", GOOD))
    assert not is_informative(record_of("FP16", "mini_ethics", GUESSING))
    assert is_informative(record_of("FP16", "mini_stories", [2.0, 3.0])), "a loss has no guessing"


def test_cheap_tasks_first_and_those_that_show_nothing_last():
    baseline = {
        "mini_ethics": record_of("FP16", "mini_ethics", GUESSING, seconds=1.0),
        "mini_cloze": record_of("FP16", "mini_cloze", GOOD, seconds=9.0),
        "mini_rules": record_of("FP16", "mini_rules", GOOD, seconds=3.0),
    }
    assert by_cost(baseline, baseline) == ["mini_rules", "mini_cloze", "mini_ethics"]


@pytest.mark.parametrize(
    ("kept", "order"), [({"A": 0.1, "B": 0.9}, ["B", "A"]), ({"A": 0.9, "B": 0.8}, ["A", "B"]), ({}, ["A", "B"])]
)
def test_hopeless_schemes_last(kept, order):
    results = SimpleNamespace(recovery=lambda scheme: {"nlp": Estimate(kept[scheme], 0.0)} if scheme in kept else {})
    assert by_promise(["A", "B"], results) == order
