"""What README and model card say of the reference model is what was measured, and enough was measured."""

import math
import sys

import pytest
import tables

from qllm_hf.evaluation.miniature import MINIATURE
from qllm_hf.evaluation.record import ABILITIES, ability_scores

SCHEMES = ("FP16", "W8", "W4", "W3", "W2", "KV8", "KV4", "KV3", "KV2", "W8A8", "W4A8", "W4A4", "W4KV8")


@pytest.fixture(scope="module")
def records():
    return tables.reference_records()


def test_pages_are_what_the_results_make():
    for path, made in tables.FILES.items():
        text = path.read_text(encoding="utf-8")
        assert tables.render(text, made) == text, f"run benchmarks/tables.py: {path.name}"


def test_a_changed_number_would_be_noticed(monkeypatch, capsys):
    path, made = next(iter(tables.FILES.items()))
    monkeypatch.setattr(tables, "FILES", {path: {**made, "exactness": lambda: "1 mismatch."}})
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    before = path.read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match=r"README\.md is not what"):
        tables.main()
    assert path.read_text(encoding="utf-8") == before


def test_every_task_under_every_scheme(records):
    assert list(records) == ["FP32", *SCHEMES]
    for scheme, found in records.items():
        assert [record.task for record in found] == list(MINIATURE), scheme
        for record in found:
            assert record.items >= 200
            if record.is_accuracy:
                spread = math.sqrt(record.value * (1 - record.value) / (record.items - 1))
                assert record.stderr == pytest.approx(spread, rel=1e-3, abs=1e-9), record
            else:
                assert record.stderr > 0


def test_float_model_meets_the_bars_set_before_it_was_trained(records):
    for record in records["FP32"]:
        if record.is_accuracy:
            assert record.value >= (0.8 if record.task in ("mini_arithmetic", "mini_calibration") else 0.9), record


@pytest.mark.parametrize("scheme", ["W8", "KV8", "W8A8"])
def test_eight_bits_are_within_two_standard_errors(records, scheme):
    exact, found = ability_scores(records["FP16"]), ability_scores(records[scheme])
    assert tuple(found) == ABILITIES
    for ability, score in found.items():
        error = math.hypot(score.stderr, exact[ability].stderr)
        assert abs(score.value - exact[ability].value) <= 2 * error, ability


def test_fewer_bits_never_help_the_text(records):
    loss = {scheme: found[0].value for scheme, found in records.items()}
    assert records["FP16"][0].metric == "nats_per_word"
    assert loss["FP16"] < loss["W3"] < loss["W2"]
    assert loss["FP16"] < loss["KV4"] < loss["KV3"] < loss["KV2"]
