"""What the campaigns of load conclude from what they see."""

import argparse
import importlib
import random

import pytest


@pytest.fixture(scope="module")
def load():
    return {name: importlib.import_module(f"load.{name}") for name in ("watching", "report")}


def samples(load, rise: float, minutes: int = 10, seed: int = 0):
    """A sample per second of a process that grows by `rise` MB per minute after it has warmed up, with noise that stays
    for a while, as that of an allocator does."""
    chance, level, found = random.Random(seed), 0.0, []
    for second in range(60 * minutes):
        level = 0.95 * level + chance.gauss(0, 0.5)
        warm = min(second, 60)
        found.append(load["watching"].Sample(second, int(1e6 * (400 + warm + rise * second / 60 + level)), 10, 5))
    return found


def test_growth_is_told_from_noise(load):
    slope = load["watching"].slope
    flat = [slope(samples(load, 0.0, seed=seed), 120) for seed in range(40)]
    assert sum(each.low > 0 for each in flat) <= 3, "one in forty may be"
    for seed in range(10):
        grows = slope(samples(load, 2.0, seed=seed), 120)
        assert grows.low > 0.5 and abs(grows.value - 2) < 4 * grows.error + 0.2
    assert slope(samples(load, 2.0)[:30], 0).low < 0, "too few to say anything"
    warm = slope(samples(load, 0.0), 0)
    assert warm.value > 2 * max(each.value for each in flat), "what is not left out would look like growth"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"rise": 3.0}, "memory grows by"),
        ({"files": 40}, "50 files are open at the end, 10 at the start"),
        ({"probe": 11.0}, "took 11.0 s"),
    ],
)
def test_what_is_a_fault(load, change, words):
    run = load["report"].Run()
    run.samples = run.tidied = samples(load, change.get("rise", 0.0))
    run.samples[-1] = run.samples[-1]._replace(files=10 + change.get("files", 0))
    run.probes = [0.1, change.get("probe", 0.2)]
    load["report"].memory_lines(run, argparse.Namespace(minutes=10, most=0.5, slack=1))
    assert [words in fault for fault in run.faults] == ([True] if words else [])
