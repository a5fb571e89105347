"""Processes that share a run: they agree or say who differs, and who is gone is named."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.engine import Subject, evaluate
from qllm_hf.evaluation.ranks import Disagreement, FailedElsewhere, LostProcess, Ranks, this_process
from qllm_hf.loading import load_model, load_tokenizer

PROGRAM = Path(__file__).with_name("two_processes.py")


def both(end):
    """What two processes say, case by case; the second one ends as `end` says."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(port), end],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said, errors = started[0].communicate(timeout=120)
        started[1].send_signal(signal.SIGKILL)  # if it was only stopped
        other, _ = started[1].communicate(timeout=60)
    finally:
        for process in started:
            process.kill()
    assert started[0].returncode == 0, errors
    return [
        {key: value for line in text.splitlines() if line.startswith("{") for key, value in json.loads(line).items()}
        for text in (said, other)
    ]


@pytest.fixture(scope="module")
def killed():
    return both("killed")


def test_what_one_knows_all_know(killed):
    for found in killed:
        assert found["share"] == {"0": 0, "1": 10, "2": None, "3": None}
        assert found["of_first"] == "from 0" and found["agree"] is None


def test_who_differs_is_named_in_all(killed):
    expected = (
        "Disagreement: the processes of this run do not have the same: the version of torch is 2.12 in process 1 on "
        "beta, machine 1, and 2.13 in process 0 on alpha, machine 0. Give all machines the same libraries, files and "
        "options."
    )
    assert [found["differ"] for found in killed] == [expected, expected]
    assert "limit is 8 in process 1 on beta, machine 1, and null in process 0" in killed[0]["lacks"]


def test_hardware_may_differ_and_is_told(killed):
    told = {"process 0 on alpha, machine 0": {"threads": "1"}, "process 1 on beta, machine 1": {"threads": "2"}}
    assert [found["hardware"] for found in killed] == [told, told]
    assert [found["same hardware"] for found in killed] == [{}, {}]


def test_a_process_that_fails_tells_the_other_and_both_go_on(killed):
    assert killed[0]["fails"] == "FailedElsewhere: process 1 on beta, machine 1: ConfigError: no rows here"
    assert killed[1]["fails"] == "told"
    assert [found["and both go on"] for found in killed] == [{"0": "here", "1": "here"}] * 2


def test_one_of_each_machine_goes_first(killed):
    assert [found["first goes first"] for found in killed] == ["ready", "ready"]
    assert [found["same machine"] for found in killed] == ["yes", "yes"]


def test_a_killed_process_is_named(killed):
    assert killed[0]["alone"].startswith("LostProcess: process 1 on beta, machine 1 is gone, process 0 on alpha")
    assert "the same command goes on from there" in killed[0]["alone"]


@pytest.mark.slow
def test_a_process_that_says_nothing_is_named():
    """Stopped, with its connections open, as a machine looks that was switched off."""
    found, _ = both("stopped")
    assert found["alone"].startswith("LostProcess: process 1 on beta, machine 1 has not been heard of for long")


class Notes:
    """A presence that only keeps what is noted."""

    def __init__(self, lost=()):
        self.kept, self.lost = {}, list(lost)

    def note(self, what, text):
        self.kept[what] = text

    def notes(self, what):
        return {1: self.kept[what]} if what in self.kept else {}

    def roll_call(self):
        return self.lost

    def leave(self):
        self.kept["left"] = "yes"


def test_a_process_that_ends_says_why():
    notes = Notes()
    with pytest.raises(ConfigError), Ranks(1, 2, presence=notes).together():
        raise ConfigError("this machine has no rows")
    with pytest.raises(FailedElsewhere, match="process 1 ended: ConfigError: this machine has no rows"):
        Ranks(0, 2, presence=notes)._lost(RuntimeError("Connection closed by peer"))
    quiet = Notes(lost=[1])
    with pytest.raises(LostProcess), Ranks(0, 2, presence=quiet).together():
        raise LostProcess("another one is gone")
    assert quiet.kept == {}, "what others did is not said again"
    with pytest.raises(LostProcess, match="process 1 is gone, process 0 found"):
        Ranks(0, 2, presence=quiet)._lost(RuntimeError("Connection closed by peer"))


@pytest.mark.parametrize("other", [{"revision": "files:0"}, {"dtype": "float16"}, {"tasks": ["mini_ethics"]}])
def test_an_evaluation_agrees_on_all_that_makes_its_scores(other):
    """A second process that differs in one thing, and not in its name of the model."""

    class Two(Ranks):
        def share(self, mine):
            if 0 in mine and isinstance(mine[0], dict) and "the version of torch" in mine[0]:
                return {0: mine[0], 1: {**mine[0], **other}}
            return {0: None, 1: None, **mine}

    model, tokenizer = load_model("reference"), load_tokenizer("reference")
    (key,) = other
    with pytest.raises(Disagreement, match=f"{key} is .* in process 1, and .* in process 0"):
        evaluate(model, tokenizer, Subject("FP16", "reference"), ["mini_cloze"], limit=4, ranks=Two(0, 2))


def test_one_process_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = this_process()
    assert alone == Ranks() and alone.is_first
    alone.wait()
    alone.agree({"torch": "1"})
    assert alone.share({3: "x"}) == {3: "x"} and alone.differing("x") == {} and alone.of_first(lambda: 4) == 4
    with alone.together() as ranks, ranks.local_first():
        assert ranks is alone
