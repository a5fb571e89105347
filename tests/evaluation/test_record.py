"""Ability scores: means of accuracies, with errors that add up as independent ones do."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.evaluation.record import ABILITIES, Record, ability_scores


def record(ability="nlp", value=0.5, stderr=0.1, chance=0.25, metric="acc") -> Record:
    return Record("W4", ability, "task", metric, value, stderr, 100, chance)


def test_mean_of_tasks_and_their_errors():
    scores = ability_scores([record(value=0.4, stderr=0.03), record(value=0.8, stderr=0.04, chance=0.5)])
    (score,) = scores.values()
    assert list(scores) == ["nlp"]
    assert (score.value, score.chance, score.tasks) == (pytest.approx(0.6), pytest.approx(0.375), 2)
    assert score.stderr == pytest.approx(0.025)


def test_losses_are_no_accuracies():
    loss = record(value=3.0, chance=None, metric="nats_per_word")
    assert ability_scores([loss]) == {}
    assert ability_scores([loss, record()])["nlp"].value == 0.5


def test_abilities_in_their_order():
    assert tuple(ability_scores([record(ability) for ability in reversed(ABILITIES)])) == ABILITIES


@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_the_error_is_that_of_repeated_experiments(parts, seed):
    """The standard deviation of the mean of tasks, simulated, is what the formula says."""
    rng, items = np.random.default_rng(seed), 200
    experiments = rng.binomial(items, parts, size=(4000, len(parts))).mean(axis=1) / items
    errors = [math.sqrt(part * (1 - part) / items) for part in parts]
    score = ability_scores([record(value=part, stderr=error) for part, error in zip(parts, errors, strict=True)])["nlp"]
    assert score.stderr == pytest.approx(experiments.std(), rel=0.1)
