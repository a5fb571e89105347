"""Every pair of scheme and task is given away once, in the order of a sweep, whatever gets lost on the way."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import record_of

from qllm_hf.cluster.board import Board, Wave

TASKS = ["mini_cloze", "mini_ethics", "mini_robustness", "mini_in_context", "mini_stories"]  # the cheapest first
LABELS = ["FP16", "W4", "W2"]
GOOD, GUESSED = [1.0] * 20, [1.0, 0.0] * 10


def score(board, label, task, values=GOOD, **changes):
    return board.keep(record_of(label, task, values, **changes))


def drain(board, act):
    """Take jobs one by one; `act` says what becomes of each."""
    order = []
    while board.left:
        job = board.take()
        assert job is not None, f"nobody may take what is left: {board.left}"
        order.append((job.label, job.tasks, job.wave))
        act(job)
        board.release(job)
    return order


def measure(board, values=lambda task: GOOD):
    def act(job):
        for task in job.tasks:
            score(board, job.label, task, values(task))
            if job.wave is Wave.PROBE and values(task) is GOOD:
                return

    return act


def test_order_is_that_of_a_sweep():
    board = Board(LABELS, TASKS, {})
    order = drain(board, measure(board))
    assert order[:3] == [
        ("FP16", ("mini_cloze", "mini_stories"), Wave.PROBE),
        ("FP16", ("mini_in_context",), Wave.PROBE),
        ("FP16", ("mini_ethics", "mini_robustness"), Wave.PROBE),
    ]
    first = [("mini_cloze",), ("mini_in_context",), ("mini_ethics",)]
    assert order[3:9] == [(label, tasks, Wave.FIRST) for label in ("W4", "W2") for tasks in first]
    assert order[9:11] == [("FP16", ("mini_stories",), Wave.BASELINE), ("FP16", ("mini_robustness",), Wave.BASELINE)]
    rest = [("mini_stories",), ("mini_robustness",)]
    assert order[11:] == [(label, tasks, Wave.REST) for label in ("W4", "W2") for tasks in rest]


def test_a_task_that_shows_nothing_is_no_probe():
    board = Board(LABELS, TASKS, {})
    order = drain(board, measure(board, lambda task: GUESSED if task == "mini_ethics" else GOOD))
    assert ("W4", ("mini_robustness",), Wave.FIRST) in order and ("W4", ("mini_ethics",), Wave.REST) in order


def test_schemes_without_promise_come_last():
    board = Board(LABELS, TASKS, {}, by_promise=lambda labels: sorted(labels))
    order = drain(board, measure(board))
    assert [label for label, _, wave in order if wave is Wave.REST] == ["W2", "W2", "W4", "W4"]


def test_others_wait_for_the_probe_of_their_ability_alone():
    board = Board(LABELS, TASKS, {})
    jobs = [board.take() for _ in range(3)]
    assert all(job.wave is Wave.PROBE for job in jobs) and board.take() is None
    score(board, "FP16", "mini_cloze")
    job = board.take()
    assert (job.label, job.tasks) == ("W4", ("mini_cloze",))


def test_what_is_known_is_not_given_away():
    known = {("FP16", task): record_of("FP16", task, GOOD) for task in TASKS}
    known |= {("W4", "mini_cloze"): record_of("W4", "mini_cloze", GOOD)}
    board = Board(LABELS, TASKS, known)
    order = drain(board, measure(board))
    given = [(label, task) for label, tasks, _ in order for task in tasks]
    assert len(given) == len(set(given)) == 15 - 6 and not set(given) & known.keys()


def test_a_failed_scheme_is_left_alone():
    board = Board(LABELS, TASKS, {})
    board.fail("W2")
    assert {label for label, _, _ in drain(board, measure(board))} == {"FP16", "W4"}
    assert board.total == 15


def test_second_score_of_a_pair_is_not_wanted():
    board = Board(LABELS, TASKS, {})
    assert score(board, "FP16", "mini_cloze") and not score(board, "FP16", "mini_cloze", GUESSED)
    assert board.known["FP16", "mini_cloze"].value == 1.0


@given(st.integers(0, 2**32))
def test_nothing_is_lost_or_doubled(seed):
    """Several jobs at once, that end in any order, some after a part of their tasks: each pair is measured once."""
    chance = Random(seed)
    board = Board(LABELS, TASKS, {})
    running, measured = [], []
    while board.left or running:
        while len(running) < chance.randint(1, 4) and (job := board.take()) is not None:
            running.append(job)
        assert running, board.left
        held = [(job.label, task) for job in running for task in job.tasks]
        assert len(held) == len(set(held)), "two machines have the same pair"
        job = running.pop(chance.randrange(len(running)))
        for task in job.tasks[: chance.randint(0, len(job.tasks))]:
            values = chance.choice([GOOD, GUESSED]) if job.label == "FP16" else GOOD
            assert score(board, job.label, task, values)
            measured.append((job.label, task))
            if job.wave is Wave.PROBE and values is GOOD:
                break
        board.release(job)
    assert sorted(measured) == sorted((label, task) for label in LABELS for task in TASKS)


@pytest.mark.parametrize(("wave", "name"), [(Wave.FIRST, "W4 · nlp"), (Wave.REST, "W4 · nlp+")])
def test_names(wave, name):
    board = Board(LABELS, ["mini_cloze", "mini_stories"], {})
    found = []
    measured = measure(board)

    def act(job):
        found.append(job)
        measured(job)

    drain(board, act)
    assert name in {job.name for job in found if job.wave is wave}
