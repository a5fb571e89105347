"""A seeded share of `scripts/kill_anywhere.py`, at the points that Python tells of; and it finds what is broken."""

import random
import sys

import pytest

from qllm_hf import whole


@pytest.fixture(scope="module")
def deaths():
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    from deaths import jobs, trials

    return jobs, trials


@pytest.fixture(scope="module")
def base(deaths, tmp_path_factory):
    place = tmp_path_factory.mktemp("deaths") / "base"
    deaths[0].make_base(place)
    return place


@pytest.fixture
def faults(deaths, base, tmp_path):
    """What comes of some points of a job: {way and point: what is wrong}, and the words for all of them."""

    def find(job: str, ways: tuple[str, ...], cases: int) -> tuple[dict[str, str], set[str]]:
        trials = deaths[1].Trials(job, base, tmp_path)
        rng = random.Random(f"{job} {ways}")
        outcomes = {
            f"{way} {number}": trials.one(way, number) for way in ways for number in trials.numbers(way, rng, cases, 2)
        }
        found = {where: outcome.detail for where, outcome in outcomes.items() if outcome.word == "FAULT"}
        return found, {outcome.word for outcome in outcomes.values()}

    return find


def test_a_model_that_is_replaced_is_never_lost(faults):
    found, words = faults("replace", ("before", "full", "interrupt"), 2)
    assert found == {} and words == {"before", "after"}


def test_saving_in_place_is_never_taken_for_a_model(faults):
    found, words = faults("save", ("before",), 4)
    assert found == {} and words <= {"before", "refused", "after"}


def test_a_calibration_goes_on_where_it_was_stopped(faults):
    assert faults("calibrate", ("before",), 2)[0] == {}


def test_a_folder_that_is_written_in_place_is_found(faults, deaths, monkeypatch):
    monkeypatch.setattr(whole, "whole_folder", whole.whole_folder)  # is put back at the end
    deaths[1].PLANTS["half"]()
    assert any("half is read as whole" in fault for fault in faults("replace", ("before",), 3)[0].values())


def test_what_is_left_behind_is_found(faults, deaths, monkeypatch):
    for name in ("_restore", "remove_left_files"):
        monkeypatch.setattr(whole, name, getattr(whole, name))
    deaths[1].PLANTS["leftovers"]()
    assert any("there are" in fault for fault in faults("quantize", ("before",), 2)[0].values())


def test_only_another_order_of_results_is_forgiven(deaths):
    from deaths.judging import in_another_order, is_pythons_probe

    one = {
        "out/records.jsonl": b"a\nb",
        "out/figures/x.csv": b"a\nb",
        "out/figures/x.svg": b"1",
        "out/report.html": b"1",
    }
    turned = {name: b"b\na" if b"\n" in content else b"2" for name, content in one.items()}
    lost = {name: b"b\nc" if b"\n" in content else b"2" for name, content in one.items()}
    redrawn = {**one, "out/figures/x.svg": b"2", "out/report.html": b"2"}
    assert all(in_another_order(name, one, turned) for name in one)
    assert not any(in_another_order(name, one, lost) for name in one)
    assert not in_another_order("out/figures/x.svg", one, redrawn) and not in_another_order(
        "out/report.html", one, redrawn
    )
    assert is_pythons_probe("tmp/8oa4b4mt", b"blat") and is_pythons_probe("tmp/8oa4b4mt", b"bl")
    assert not is_pythons_probe("tmp/8oa4b4mt", b"weights") and not is_pythons_probe("out/8oa4b4mt", b"")
