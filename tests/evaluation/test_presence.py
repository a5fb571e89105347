"""Signs of life: who has gone silent, and who noticed."""

import time

import pytest

from qllm_hf.evaluation.presence import Presence


class Store:
    """What the processes write, in one."""

    def __init__(self):
        self.kept = {}

    def set(self, key, value):
        self.kept[key] = value.encode()

    def check(self, keys):
        return all(key in self.kept for key in keys)

    def get(self, key):
        return self.kept[key]


@pytest.fixture
def three():
    store = Store()
    made = [Presence(store, rank, 3, beat=0.05, silence=0.4) for rank in range(3)]
    yield made
    for each in made:
        each.leave()


def test_nobody_is_silent_while_all_are_there(three):
    for _ in range(8):
        time.sleep(0.1)
        assert three[0].silent() == []
    assert three[0].roll_call() == []


def test_who_stops_is_named(three):
    assert three[0].silent() == []
    three[2].leave()
    until = time.monotonic() + 5
    while not (silent := three[0].silent()) and time.monotonic() < until:
        time.sleep(0.05)
    assert silent == [2]
    assert three[0].roll_call() == [2]


def test_who_noticed_too_and_left_is_not_lost(three):
    three[1].note("noticed", "yes")
    three[1].leave()
    three[2].leave()
    assert three[0].roll_call() == [2]


def test_notes(three):
    assert three[0].notes("failed") == {}
    three[1].note("failed", "ConfigError: no rows")
    assert three[0].notes("failed") == {1: "ConfigError: no rows"} == three[1].notes("failed")
