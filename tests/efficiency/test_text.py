"""The page says what was measured, what was not, and how sure the ratios are."""

import pytest

from qllm_hf.efficiency.cells import Case, Cell, Times
from qllm_hf.efficiency.text import page
from qllm_hf.reporting.text import WIDTH

CASE, LONG = Case(1, 128, 32), Case(16, 2048, 32)
FAST, SLOW = Times((0.1,) * 3, (0.01,) * 3, (0.42,) * 3), Times((0.2,) * 3, (0.03,) * 3, (1.2,) * 3)
SIZES = {"peak_bytes": 10**9, "weight_bytes": 8 * 10**8, "kv_bytes": 10**6}
CELLS = [
    Cell("FP16", CASE, "ok", times=SLOW, **SIZES),
    Cell("FP16", LONG, "oom", "full"),
    Cell("W4", CASE, "ok", times=FAST, baseline=SLOW, **SIZES),
    Cell("W4", LONG, "ok", times=FAST, **SIZES),
    Cell("W8", CASE, "ok", times=FAST, **SIZES),
    Cell("W8", LONG, "oom_predicted", "full"),
]


def line(text, *beginning):
    return next(line for line in text.splitlines() if line.split()[: len(beginning)] == list(beginning))


def test_seconds_and_bytes():
    text = page(CELLS, 7 * 10**9)
    assert line(text, "FP16", "1", "128").split() == [
        *("FP16", "1", "128", "0.2", "640.0", "30", "33.3", "1.2"),
        *("1", "GB", "800", "MB", "1", "MB"),
    ]
    assert line(text, "FP16", "16", "2048").split() == ["FP16", "16", "2048", *"-----", "OOM", "-", "-"]
    assert line(text, "W8", "16", "2048").split()[8:] == ["OOM", "(predicted)", "-", "-"]
    assert "it is tried again next time" in " ".join(text.split())


def test_ratios_of_pairs_have_quartiles_and_others_a_mark():
    text = page(CELLS, 7 * 10**9).split("Times as fast as FP16")[1]
    assert line(text, "W4", "1", "128").split("128")[1].split("  ")[-1] == "2.86 [2.86-2.86]"
    assert line(text, "W8", "1", "128").split()[3:] == ["2.00*", "3.00*", "2.86*"]
    assert "W4        16" not in text  # the float model did not fit
    assert "*: not in pairs" in " ".join(page(CELLS, 7 * 10**9).split())
    assert "in brackets the quartiles" in " ".join(text.split())


def test_one_repeat_shows_no_spread():
    one, other = Times((0.1,), (0.01,), (0.4,)), Times((0.2,), (0.02,), (0.8,))
    text = page([Cell("FP16", CASE, "ok", times=other), Cell("W4", CASE, "ok", times=one, baseline=other)], 10**9)
    ratios = text.split("Times as fast as FP16")[1]
    assert "[" not in ratios
    assert "quartiles" not in ratios
    assert "OOM" not in text


def test_published_cells_stand_below_those_of_here():
    text = page(CELLS, 7 * 10**9).split("Next to what was published for W4")[1]
    assert line(text, "W4", "here").split() == ["W4", "here", "1", "128", "2.00", "3.00", "2.86"]
    assert line(text, "TensorRT-LLM,").split()[-5:] == ["1", "128", "1.06", "2.40", "2.37"]
    assert "arXiv 2404.14294" in text
    assert "W8" not in text


@pytest.mark.parametrize("schemes", [("FP16",), ("W4",), ("FP16", "KV4")])
def test_tables_without_content_are_left_out(schemes):
    cells = [Cell(scheme, CASE, "ok", times=FAST, baseline=SLOW if "KV" in scheme else None) for scheme in schemes]
    text = page(cells, 7 * 10**9)
    assert ("Times as fast" in text) == (len(schemes) > 1)
    assert "published" not in text


def test_what_did_not_fit_there_is_said():
    cells = [Cell("FP16", LONG, "ok", times=SLOW), Cell("W4", LONG, "ok", times=FAST, baseline=SLOW)]
    assert "FP16 OOM" in page(cells, 13 * 10**9)


def test_no_line_is_too_wide():
    large = {"peak_bytes": 123 * 10**9, "weight_bytes": 123 * 10**9, "kv_bytes": 123 * 10**9}
    long = Times((123.4567,) * 3, (1.23456,) * 3, (1234.567,) * 3)
    cells = [Cell("FP16", LONG, "ok", times=long, **large)]
    cells += [Cell("W4A8KV4", LONG, "ok", times=long, baseline=long, **large), Cell("W4", LONG, "oom_predicted", "x")]
    cells += [Cell("W4", LONG, "ok", times=long, baseline=long, **large)]
    assert max(map(len, page(cells, 10**12).splitlines())) <= WIDTH
