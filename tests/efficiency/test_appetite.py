"""What short runs tell of long ones is not less than these take, whatever the architecture."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import float_model

import qllm_hf
from qllm_hf.efficiency.appetite import Appetite
from qllm_hf.efficiency.cells import Case
from qllm_hf.efficiency.measure import prompts, run_once
from qllm_hf.efficiency.memory import peak_of

CASES = (Case(1, 8, 4), Case(8, 20, 8), Case(2, 400, 3), Case(3, 100, 30))
FAMILIES = ("llama", "falcon", "mixtral", "gemma2", "gemma3_text", "deepseek_v3", "mamba", "mamba2", "jamba", "opt")


def check(model):
    appetite = Appetite.of(model, max(case.tokens for case in CASES))
    for case in CASES:
        ids = prompts(model, case)
        peak = peak_of(torch.device("cpu"), lambda case=case, ids=ids: run_once(model, ids, case))[1]
        assert peak <= appetite.bytes(case), case
        if case.tokens > 400:  # shorter ones: the shortest run as it is, and new tokens count as if they were read
            assert appetite.bytes(case) < 1.75 * peak, case
    return appetite


@pytest.mark.parametrize("name", FAMILIES)
def test_of_each_kind_of_architecture(name):
    check(float_model(name))


@pytest.mark.parametrize("scheme", ["W4", "KV4", "W8A8", "W4KV2"])
def test_of_packed_models(scheme):
    check(qllm_hf.quantize_(float_model("llama"), scheme))


def made_up(*levels, twice):
    return Appetite((32, 64, 128), torch.tensor(levels, dtype=torch.float64), torch.tensor(twice, dtype=torch.float64))


@given(st.integers(0, 1000), st.integers(0, 50), st.integers(0, 2), st.integers(1, 64), st.integers(2, 10**5))
def test_a_square_is_found_exactly(constant, slope, square, batch, tokens):
    def level(length, count=1):
        return [constant + count * (slope * length + square * length**2)]

    appetite = made_up(level(32, 2), level(64, 2), level(128, 2), twice=level(32, 4))
    assert appetite.bytes(Case(batch, tokens, 2)) == int(1.25 * level(max(tokens, 32), batch)[0])


def test_the_highest_point_of_a_long_run_may_be_another():
    # an unpacked weight hides what grows with the tokens
    appetite = made_up([1000, 64], [1000, 128], [1000, 256], twice=[1000, 128])
    assert appetite.bytes(Case(1, 100, 2)) == 1250
    assert appetite.bytes(Case(8, 4000, 2)) == 1.25 * 8 * 4000


def test_never_less_than_what_was_seen():
    odd = made_up([1000], [900], [950], twice=[1900])
    assert odd.bytes(Case(2, 10, 2)) >= 1000
    assert odd.bytes(Case(2, 10_000, 2)) >= 1000
    assert odd.bytes(Case(10, 10, 2)) >= 4500


def test_runs_that_allocate_other_tensors_have_a_wider_margin():
    assert check(float_model("llama")).margin == 1.25
    counts = iter([[5], [6, 7], [8], [9]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qllm_hf.efficiency.appetite.levels_of", lambda run: (None, next(counts)))
        found = Appetite.of(float_model("llama"), 100)
    assert (found.margin, found.levels.tolist(), found.twice.tolist()) == (1.5, [[5], [7], [8]], [9])


def test_short_prompts_are_enough():
    assert Appetite.of(float_model("llama"), 3).lengths == (1, 2, 4)
