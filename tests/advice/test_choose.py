"""The choice does what its four sentences say, for any situation."""

from dataclasses import replace

import pytest
from advice.fakes import fake_costs
from hypothesis import given, settings
from hypothesis import strategies as st

from qllm_hf.advice.candidates import Candidate, pareto_front
from qllm_hf.advice.changes import changes, decide
from qllm_hf.advice.choose import choose
from qllm_hf.advice.loss import Loss
from qllm_hf.advice.merge import merge
from qllm_hf.advice.rules import rules_for
from qllm_hf.advice.situation import Situation
from qllm_hf.scheme import Scheme

GB = 10**9
situations = st.builds(
    Situation,
    abilities=st.lists(
        st.sampled_from(["nlp", "icl", "if", "mr", "sc", "trust", "dialogue", "long"]), min_size=1, max_size=4
    ).map(tuple),
    params_b=st.sampled_from([0.5, 2.8, 7.0, 13.0, 46.7, 70.0]),
    moe=st.booleans(),
    context=st.sampled_from([512, 2048, 4096, 16384, 65536]),
    batch=st.sampled_from([1, 8, 64]),
    memory_bytes=st.integers(10**8, 400 * GB),
    tolerance=st.sampled_from([0.0, 1.0, 2.0, 5.0, 20.0]),
    family=st.sampled_from(["", "LLaMA2", "LongChat", "Falcon", "Gemma"]),
    has_kv=st.booleans(),
)


def candidate(scheme: str, size: int, loss: float | None, **values: object) -> Candidate:
    known = Loss("nlp", loss, "published" if loss is not None else "none", "")
    return Candidate(scheme, size, 0, size, True, (known,), known, **values)


@settings(max_examples=150, deadline=None)
@given(situations)
def test_the_choice_fits_and_is_not_advised_against(situation):
    found, choice = decide(situation, fake_costs(situation))
    if choice.chosen is None:
        allowed = [each for each in found if not each.avoided and each.loss.percent is not None]
        assert all(each.total_bytes > situation.memory_bytes for each in allowed)
        assert choice.missing_bytes == min(each.total_bytes for each in allowed) - situation.memory_bytes > 0
        return
    chosen = choice.chosen
    assert chosen.fits
    assert chosen.total_bytes <= situation.memory_bytes
    assert not merge(rules_for(situation)).avoids(Scheme.parse(chosen.scheme))
    assert choice.is_within == chosen.is_within(situation.tolerance)
    within = [each for each in found if each.fits and not each.avoided and each.is_within(situation.tolerance)]
    assert choice.is_within == bool(within)
    assert all(each.total_bytes >= chosen.total_bytes for each in within)
    assert situation.has_kv or Scheme.parse(chosen.scheme).kv == 16


@settings(max_examples=100, deadline=None)
@given(situations, st.integers(0, 400 * GB))
def test_more_memory_never_means_fewer_bytes(situation, more):
    costs = fake_costs(situation)
    _, choice = decide(situation, costs)
    _, larger = decide(replace(situation, memory_bytes=situation.memory_bytes + more), costs)
    if choice.chosen is not None:
        assert larger.chosen.total_bytes >= choice.chosen.total_bytes
        assert larger.is_within or not choice.is_within


@settings(max_examples=100, deadline=None)
@given(situations, st.floats(0, 30))
def test_a_looser_tolerance_never_needs_more_memory(situation, more):
    costs = fake_costs(situation)
    _, choice = decide(situation, costs)
    _, looser = decide(replace(situation, tolerance=situation.tolerance + more), costs)
    assert (looser.chosen is None) == (choice.chosen is None)
    if choice.chosen is not None:
        assert looser.chosen.total_bytes <= choice.chosen.total_bytes


@settings(max_examples=50, deadline=None)
@given(situations)
def test_nothing_beats_the_front_and_the_front_beats_the_rest(situation):
    found, _ = decide(situation, fake_costs(situation))
    known = {each.scheme: each for each in found if each.loss.percent is not None and not each.avoided}
    front = pareto_front(found)
    assert front
    assert set(front) <= set(known)
    for each in known.values():
        beaten = any(known[name].dominates(each) for name in front)
        assert beaten != (each.scheme in front)


@settings(max_examples=25, deadline=None)
@given(situations)
def test_changes_are_what_would_be_chosen(situation):
    costs = fake_costs(situation)
    now = decide(situation, costs)[1].chosen
    for change in changes(situation, costs):
        assert change.scheme != (now.scheme if now else "")
        assert (change.total_bytes is None) == (change.scheme == "") == (change.loss is None)


def test_smallest_within_the_tolerance():
    found = [candidate("FP16", 16, 0.0), candidate("W8", 8, 0.5), candidate("W4", 4, 1.9), candidate("W3", 3, 2.1)]
    assert choose(found, 2.0, 100).chosen.scheme == "W4"
    assert choose(found, 1.0, 100).chosen.scheme == "W8"
    assert choose(found, 2.0, None).chosen.scheme == "W4"
    assert choose(found, 5.0, 100).chosen.scheme == "W3"


def test_if_none_is_within_the_tolerance_the_one_that_loses_least():
    found = [candidate("FP16", 16, 0.0), candidate("W4", 4, 9.0), candidate("W3", 3, 30.0)]
    choice = choose(found, 2.0, 5)
    assert (choice.chosen.scheme, choice.is_within) == ("W4", False)


def test_if_none_fits_the_nearest_and_what_is_missing():
    choice = choose([candidate("FP16", 16, 0.0), candidate("W4", 4, 1.0)], 2.0, 3)
    assert (choice.chosen, choice.nearest.scheme, choice.missing_bytes) == (None, "W4", 1)


def test_what_is_advised_against_or_unknown_is_never_chosen():
    found = [candidate("FP16", 16, 0.0), candidate("W3", 3, 0.0, avoided="W3"), candidate("KV4", 2, None)]
    assert choose(found, 2.0, 100).chosen.scheme == "FP16"
    assert choose(found, 2.0, 10).chosen is None


def test_of_equal_bytes_the_faster_then_the_better():
    slow = candidate("W8", 8, 0.0, decode_seconds=2.0, prefill_seconds=1.0)
    fast = candidate("W8A8", 8, 1.0, decode_seconds=1.0, prefill_seconds=1.0)
    assert choose([slow, fast], 2.0, 10).chosen is fast
    assert choose([replace(slow, decode_seconds=1.0), fast], 2.0, 10).chosen.scheme == "W8"


def test_the_front_looks_at_loss_bytes_and_time():
    small = candidate("W4", 4, 2.0, decode_seconds=2.0, prefill_seconds=2.0)
    fast = candidate("W4A8", 5, 2.0, decode_seconds=1.0, prefill_seconds=2.0)
    good = candidate("W8", 8, 1.0, decode_seconds=3.0, prefill_seconds=2.0)
    beaten = candidate("W8A8", 9, 1.0, decode_seconds=3.0, prefill_seconds=2.0)
    assert pareto_front([small, fast, good, beaten]) == ("W4", "W4A8", "W8")
    twin = replace(small, scheme="twin")
    assert pareto_front([small, twin]) == ("W4", "twin"), "equals do not beat each other"


def test_what_would_change_a_choice():
    situation = Situation(("dialogue", "long"), 7, context=16384, batch=8, memory_bytes=24 * GB)
    found = {change.if_: change for change in changes(situation, fake_costs(situation))}
    memory = next(change for text, change in found.items() if text.startswith("memory of"))
    size = float(memory.if_.split()[2]) * GB
    again = decide(replace(situation, memory_bytes=int(size + GB / 100)), fake_costs(situation))[1]
    assert again.chosen.scheme == memory.scheme
    shorter = found["a context of 8,192 tokens"]
    again = decide(replace(situation, context=8192), fake_costs(situation))[1]
    assert again.chosen.scheme == shorter.scheme
    assert found["a context of 32,768 tokens"].scheme == ""
    assert next(text for text in found if text.startswith("memory below"))


def test_other_abilities_can_change_a_choice():
    situation = Situation(("icl", "sc"), 7, memory_bytes=80 * GB)
    costs = fake_costs(situation)
    found = {change.if_: change.scheme for change in changes(situation, costs)}
    assert (
        found["dialogue as well"]
        == decide(replace(situation, abilities=("icl", "sc", "dialogue")), costs)[1].chosen.scheme
    )
    assert found["no sc"] == decide(replace(situation, abilities=("icl",)), costs)[1].chosen.scheme


def test_without_a_limit_memory_changes_nothing():
    situation = Situation(("dialogue",), 7)
    assert not [each for each in changes(situation, fake_costs(situation)) if each.if_.startswith("memory")]


@pytest.mark.parametrize("memory_bytes", [1, GB])
def test_too_little_memory_is_no_error(memory_bytes):
    situation = Situation(("dialogue",), 70, memory_bytes=memory_bytes)
    assert decide(situation, fake_costs(situation))[1].chosen is None
