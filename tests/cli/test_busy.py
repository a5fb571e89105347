"""Commands whose folder another process writes to: refused at once, with who it is, and nothing changed."""

import os
import threading
from contextlib import contextmanager

import pytest
from made_results import record_of
from typer.testing import CliRunner

from qllm_hf import loading
from qllm_hf.cli.main import app
from qllm_hf.evaluation.store import Store, writing
from qllm_hf.whole import claiming


@contextmanager
def somebody(lock):
    """Another thread has the lock, which to a command is as another process."""
    has_it, is_over = threading.Event(), threading.Event()

    def hold():
        with lock:
            has_it.set()
            is_over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    has_it.wait(60)
    yield
    is_over.set()
    thread.join()


def refused(*words) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1, done.output
    return done.output


@pytest.fixture
def no_model(monkeypatch):
    def load(*_, **__):
        pytest.fail("a model was loaded")

    monkeypatch.setattr(loading, "load_model", load)


def test_quantize_is_refused_before_it_loads(stories, tmp_path, no_model):
    with somebody(claiming(tmp_path / "out")):
        said = refused("quantize", stories, "--scheme", "W4", "-o", tmp_path / "out")
    assert f"is being written by process {os.getpid()} on " in said and "Wait for it to end" in said
    assert list(tmp_path.iterdir()) == []


def test_export_is_refused(packed, tmp_path):
    with somebody(claiming(tmp_path / "out")):
        assert "is being written by process" in refused("export", packed, "-o", tmp_path / "out")
    with somebody(claiming(tmp_path / "out.gguf")):
        said = refused("export", packed, "--format", "gguf", "-o", tmp_path / "out.gguf")
    assert "is being written by process" in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def packed(stories, tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "packed"
    done = CliRunner().invoke(
        app, ["quantize", str(stories), "--scheme", "W4", "--w-group-size", "-1", "-o", str(place), "--quiet"]
    )
    assert done.exit_code == 0, done.output
    return place


@pytest.mark.parametrize("command", ["evaluate", "sweep", "sweep --part"])
def test_results_are_refused_and_can_be_read_meanwhile(command, stories, tmp_path):
    out = tmp_path / "out"
    words = [*command.split(), stories, "--tasks", "mini_cloze", "--limit", "2", "-o", out]
    with somebody(writing(out)):
        Store(out).add(record_of("FP16", "mini_cloze", [1.0, 0.0]), [])
        before = (out / "records.jsonl").read_bytes()
        said = refused(*words)
        assert "is being written by process" in said and "qllm-hf merge" in said
        assert (out / "records.jsonl").read_bytes() == before
        assert sorted(path.name for path in out.iterdir()) == [".lock", "records.jsonl", "samples"]
        assert [record.task for record in Store(out).records] == ["mini_cloze"]
    assert not (out / ".lock").exists()


def test_a_benchmark_is_refused_before_it_loads(stories, tmp_path, no_model):
    with somebody(writing(tmp_path / "out")):
        said = refused("bench", stories, "--schemes", "W4", "--batch", "1", "--input", "8", "-o", tmp_path / "out")
    assert "is being written by process" in said and "neither is measured" in said
    assert not list((tmp_path / "out").iterdir())
