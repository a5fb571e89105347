"""Compiled code is compared with plain torch before it is believed."""

import warnings
from collections import Counter

import pytest
import torch

from qllm_hf import trials
from qllm_hf.errors import QllmWarning
from qllm_hf.trials import Trials, Untestable, difference, distance


@pytest.fixture
def calls():
    return Counter()


@pytest.fixture
def run(calls):
    """One piece of work, whose fast way gives what it is told to."""
    judge = Trials("these kernels", "Set THEM=0.")

    def work(given, kind="a kind", wanted=1.0):
        def fast():
            calls["fast"] += 1
            if isinstance(given, Exception):
                raise given
            return torch.tensor([given, 2.0])

        def plain():
            calls["plain"] += 1
            return torch.tensor([wanted, 2.0])

        return judge.run(kind, fast, lambda found: difference(found, torch.tensor([wanted, 2.0])), plain)[0].item()

    work.judge = judge
    return work


def test_what_is_right_is_compared_once(run, calls):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(1.001) == pytest.approx(1.001)
        assert run(7.0) == 7.0, "it is believed from then on"
    assert calls == {"fast": 2}
    run(1.0, "another kind")
    assert run.judge.passed == {"a kind", "another kind"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (1.2, r"off by up to 0\.0775 of their size"),
        (float("nan"), "off by up to nan"),
        (RuntimeError("ptxas said no"), "RuntimeError: ptxas said no"),
    ],
)
def test_what_is_wrong_is_not_tried_again(run, calls, given, reason):
    with pytest.warns(QllmWarning, match=rf"these kernels are not used for a kind: .*{reason}.*Set THEM=0\."):
        assert run(given) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(given) == 1.0
    assert calls == {"fast": 1, "plain": 2}
    assert not run.judge.passed


def test_what_says_nothing_decides_nothing(run, calls):
    assert run(float("inf"), wanted=float("inf")) == float("inf")
    assert run(1.0) == 1.0
    assert calls == {"fast": 2, "plain": 1}


def test_what_it_does_not_take_goes_on_in_torch():
    judge = Trials("these kernels", "")
    for _ in range(2):
        assert judge.run("a kind", lambda: None, lambda found: "never asked", lambda: 3) == 3
        assert not judge.failed
        judge.passed.add("a kind")


def test_no_memory_is_not_a_fault_of_the_code(run):
    with pytest.raises(torch.OutOfMemoryError):
        run(torch.OutOfMemoryError("no room"))
    assert not run.judge.failed


def test_a_graph_that_is_recorded_is_not_interrupted(run, calls, monkeypatch):
    monkeypatch.setattr(trials, "_is_capturing", lambda: True)
    assert run(1.0) == 1.0
    assert calls == {"plain": 1}
    monkeypatch.undo()
    run(1.0)
    monkeypatch.setattr(trials, "_is_capturing", lambda: True)
    assert run(3.0) == 3.0


def test_differences():
    wanted = torch.randn(5, 70)
    assert difference(wanted.bfloat16(), wanted) is None
    off = wanted.clone()
    off[3, 17] += 0.5
    assert "off by up to" in difference(off, wanted)
    assert distance(off, wanted) is None, "one of many is not much"
    assert "off by up to" in distance(wanted.roll(1, 0), wanted)
    for compare in (difference, distance):
        assert "[5, 69]" in compare(wanted[:, 1:], wanted)
        assert compare(wanted[:0], wanted[:0]) is None
        assert compare(torch.zeros(3), torch.zeros(3)) is None
        assert compare(torch.full((3,), 1e-9), torch.zeros(3)) is not None
        with pytest.raises(Untestable):
            compare(wanted, wanted / 0)


def test_rows_of_zeros():
    wanted = torch.randn(4, 8)
    wanted[1] = 0
    assert difference(wanted.clone(), wanted) is None
    off = wanted.clone()
    off[1, 3] = 1e-6
    assert difference(off, wanted) is not None


def test_large_numbers_and_rows_are_measured_by_themselves():
    wanted = torch.randn(4, 64)
    wanted[0] *= 1e4
    wanted[1, 5] = 1e6
    assert difference(wanted.bfloat16(), wanted) is None
    off = wanted.clone()
    off[2, 3] += 1
    assert difference(off, wanted) is not None, "large rows hide nothing in small ones"
