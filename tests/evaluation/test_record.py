"""Records that survive a file, and ability scores: means of accuracies, whose errors add up as independent ones do."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.errors import CheckpointError
from qllm_hf.evaluation.record import ABILITIES, FORMAT, Record, ability_scores


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


def test_ratings_are_parts_of_their_best():
    """A rating of 5.5 from 1 to 10 is half of what can be had above guessing, as 0.5 is from 0 to 1."""
    rating = replace(record("dialogue", value=5.5, stderr=0.9, chance=1.0, metric="rating"), best=10.0)
    score = ability_scores([rating])["dialogue"]
    assert (score.value, score.chance, score.stderr) == pytest.approx((0.55, 0.1, 0.09))
    assert (score.normalised, score.normalised_stderr) == pytest.approx((0.5, 0.1))
    both = ability_scores([rating, record("dialogue", value=1.0, stderr=0.0, chance=0.0)])["dialogue"]
    assert (both.value, both.normalised, both.tasks) == pytest.approx((0.775, 0.75, 2))
    assert both.normalised_stderr == pytest.approx(0.05)


def test_below_guessing_is_negative():
    score = ability_scores([record(value=0.1, chance=0.25)])["nlp"]
    assert score.normalised == pytest.approx(-0.2)


def test_what_does_not_count_is_left_out():
    counting, variant = record(value=0.8), replace(record(value=0.1), in_ability=False)
    assert ability_scores([counting, variant]) == ability_scores([counting])
    assert ability_scores([variant]) == {}
    assert ability_scores([counting, replace(variant, in_ability=True)]) != ability_scores([counting])
    assert ability_scores([]) == {}


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=8)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+,-]{0,8}", fullmatch=True)
parts = st.floats(0, 1)
records = st.builds(
    Record,
    scheme=names,
    ability=st.sampled_from(ABILITIES),
    task=names,
    metric=names,
    value=parts,
    stderr=parts | st.just(math.nan),
    items=st.integers(1, 10**6),
    chance=st.none() | st.floats(0, 0.9),
    best=st.floats(1, 100),
    in_ability=st.booleans(),
    model=words,
    revision=words,
    quantization=st.dictionaries(words, st.none() | st.integers() | words | st.lists(words, max_size=2), max_size=3),
    dtype=words,
    limit=st.none() | st.integers(2, 100),
    shots=st.integers(0, 10),
    chat=st.booleans(),
    answered=parts,
    cut=st.integers(0, 10),
    details=st.dictionaries(words, numbers, max_size=3),
    data=st.dictionaries(words, words, max_size=2),
    task_version=words,
    judge=words,
    usage=st.dictionaries(words, st.integers(), max_size=2),
    seeds=st.dictionaries(words, st.integers(), max_size=2),
    versions=st.dictionaries(words, words, max_size=2),
    hardware=st.dictionaries(words, words, max_size=2),
    seconds=numbers,
    date=words,
)


@given(records)
def test_a_file_gives_back_the_record(made):
    """Through real JSON, which knows no nan: a standard error that there is not is null."""
    text = json.dumps(made.to_json(), allow_nan=False)
    found = Record.from_json(json.loads(text))
    assert found.to_json() == made.to_json()
    for each in fields(Record):
        before, after = getattr(made, each.name), getattr(found, each.name)
        assert after == before or (each.name == "stderr" and math.isnan(before) and math.isnan(after)), each.name
    assert json.loads(text)["stderr"] == (None if math.isnan(made.stderr) else made.stderr)


def test_a_record_without_error_is_no_record_with_one():
    assert record(stderr=0.0).to_json()["stderr"] == 0.0
    assert record(stderr=math.nan).to_json()["stderr"] is None


@given(records, numbers, words)
def test_the_result_is_without_what_differs_between_runs(made, seconds, date):
    later = replace(made, seconds=seconds, date=date)
    assert later.result == made.result
    assert not {"seconds", "date"} & made.result.keys()
    assert replace(made, items=made.items + 1).result != made.result
    assert replace(made, versions={**made.versions, "torch": "another"}).result != made.result


def test_a_partial_score_says_so():
    assert not record().is_partial
    assert replace(record(), limit=20).is_partial


def test_records_of_a_newer_version_are_refused():
    entry = record().to_json()
    assert Record.from_json(entry) == record()
    with pytest.raises(
        CheckpointError, match=rf"format {FORMAT + 1} was written by a newer qllm_hf; .* up to {FORMAT}"
    ):
        Record.from_json({**entry, "format": FORMAT + 1})


@pytest.mark.parametrize("entry", [{}, {"format": "one", "task": "t"}, {"format": 1}, {"task": "t"}])
def test_what_is_no_record_is_refused(entry):
    with pytest.raises(CheckpointError, match="this is no record of a score: it has"):
        Record.from_json(entry)


@pytest.mark.parametrize("name", ["scheme", "ability", "metric", "value", "items"])
def test_a_record_with_a_field_missing_is_refused(name):
    entry = {key: value for key, value in record().to_json().items() if key != name}
    with pytest.raises(CheckpointError, match=f"a record lacks '{name}'"):
        Record.from_json(entry)


def test_records_with_less_or_more_in_them_are_read():
    """What is not needed has its usual value, and fields of which this version knows nothing are passed over."""
    few = {"format": 1, "scheme": "W4", "ability": "nlp", "task": "t", "metric": "acc", "value": 0.5, "items": 4}
    found = Record.from_json(few)
    assert (found.chance, found.limit, found.best, found.in_ability) == (None, None, 1.0, True)
    assert math.isnan(found.stderr)
    assert Record.from_json({**few, "mood": "good"}).to_json() == found.to_json()
