"""Ratios and spreads of known times, and the published cells next to them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.efficiency.cells import Case, Cell, Times
from qllm_hf.efficiency.nearest import is_published_scheme, nearest
from qllm_hf.efficiency.ratios import Spread, ratios_of, row_of, times_of

CASE = Case(4, 128, 32)


def times(*seconds):
    """Prefill as given, a hundredth of it for a token, twice of it for all."""
    return Times(tuple(seconds), tuple(s / 100 for s in seconds), tuple(2 * s for s in seconds))


FLOAT = Cell("FP16", CASE, "ok", times=times(2.0, 2.0, 8.0))


def test_pairs_are_compared_one_by_one():
    # the machine was four times slower for the last pair, and the ratio does not see it
    cell = Cell("W4", CASE, "ok", times=times(1.0, 1.0, 4.0), baseline=times(2.0, 2.0, 8.0))
    for ratio in ratios_of(cell, [FLOAT, cell]).values():
        assert (ratio.paired, ratio.spread) == (True, Spread(2.0, 2.0, 2.0))


def test_quartiles_of_pairs():
    cell = Cell("W4", CASE, "ok", times=times(1, 1, 1, 1, 1), baseline=times(1, 2, 3, 4, 5))
    assert ratios_of(cell, [])["decode"].spread == Spread(3.0, 2.0, 4.0)


def test_without_pairs_medians_are_divided_and_have_no_spread():
    cell = Cell("W4", CASE, "ok", times=times(1.0, 4.0, 4.0))
    for ratio in ratios_of(cell, [FLOAT, cell]).values():
        assert (ratio.paired, ratio.spread) == (False, Spread(0.5))


def test_one_repeat_has_no_spread():
    cell = Cell("W4", CASE, "ok", times=times(1.0), baseline=times(2.0))
    assert times_of(cell)["prefill"] == Spread(1.0)
    assert ratios_of(cell, [])["prefill"].spread == Spread(2.0)


def test_no_ratio_without_two_times():
    measured = Cell("W4", CASE, "ok", times=times(1.0))
    full = Cell("FP16", CASE, "oom", "full")
    other = Cell("FP16", Case(1, 128, 32), "ok", times=times(1.0))
    assert ratios_of(measured, [full, other, measured]) == {}
    assert ratios_of(full, [full]) == ratios_of(FLOAT, [FLOAT]) == {}
    assert times_of(full) == {}


def test_a_row_has_all_numbers():
    cell = Cell("W4", CASE, "ok", times=times(1.0, 3.0), baseline=times(2.0, 3.0), peak_bytes=9, kv_bytes=4)
    row = row_of(cell, [cell])
    assert row["prefill_tokens_per_second"] == 4 * 128 / 2
    assert row["decode_tokens_per_second"] == 4 / 0.02
    assert row["seconds"]["end_to_end"] == {"median": 4.0, "low": 3.0, "high": 5.0}
    assert row["ratio_to_fp16"]["prefill"] == {"median": 1.5, "low": 1.25, "high": 1.75, "paired": True}
    assert json.loads(json.dumps(row)) == row
    empty = row_of(Cell("W4", CASE, "oom", "full"), [])
    assert (empty["status"], empty["seconds"], empty["ratio_to_fp16"]) == ("oom", {}, {})


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=20))
def test_a_spread_is_in_order(values):
    spread = Spread.of(values)
    ordered = [min(values), spread.low, spread.median, spread.high, max(values)]
    assert ordered == pytest.approx(sorted(ordered))


def test_published_scheme():
    assert [is_published_scheme(s) for s in ("W4", "W4g32", "W4A8", "W4KV8", "W8", "FP16", "KV4")] == [
        True,
        True,
        *[False] * 5,
    ]


@pytest.mark.parametrize(
    ("case", "params", "expected"),
    [
        (Case(1, 128, 32), 6_738_415_616, ("LLaMA-2-7B", 1, 128)),
        (Case(16, 2048, 32), 13_016_000_000, ("LLaMA-2-13B", 16, 2048)),
        (Case(64, 10_000, 32), 70_000_000_000, ("LLaMA-2-13B", 16, 2048)),
        (Case(5, 20, 32), 260_032, ("LLaMA-2-7B", 4, 128)),
        (Case(3, 700, 32), 7_000_000_000, ("LLaMA-2-7B", 4, 512)),
    ],
)
def test_nearest_published_cell(case, params, expected):
    found = nearest(case, params)
    assert set(found) == {"TensorRT-LLM", "LMDeploy"}
    for stages in found.values():
        assert set(stages) == {"prefill", "decode", "end_to_end"}
        for stage, cell in stages.items():
            assert (cell.model, cell.batch, cell.input_tokens, cell.stage) == (*expected, stage)


def test_a_published_number():
    (value,) = {nearest(Case(1, 128, 32), 7_000_000_000)["TensorRT-LLM"]["decode"].speedup}
    assert value == 2.4
