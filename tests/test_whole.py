"""Files and folders that appear whole, and what killed processes left of them."""

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest

from qllm_hf import whole
from qllm_hf.errors import BusyError
from qllm_hf.processes import this_machine
from qllm_hf.whole import claiming, naming, whole_file, whole_folder, write_whole


@pytest.fixture(params=[True, False], ids=["one step", "two renames"])
def exchanging(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(whole, "_exchange", lambda first, second: False)


def nothing(*_: Path) -> None:
    """Checks nothing."""


def fill(place: Path, text: str) -> None:
    with whole_folder(place, nothing, nothing) as partial:
        (partial / "a").write_text(text)


def test_a_file_is_as_before_if_anything_fails(tmp_path):
    path = tmp_path / "x.json"
    write_whole(path, b"old")
    with pytest.raises(ValueError), whole_file(path) as partial:
        partial.write_bytes(b"ne")
        raise ValueError
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_what_dead_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = this_machine()
    dead, alive = (tmp_path / f".x.json.{mine}-{pid}.partial" for pid in (ended.pid, os.getppid()))
    elsewhere = tmp_path / f".x.json.{'0' * 8}-{ended.pid}.partial"
    for path in (dead, alive, elsewhere):
        path.write_bytes(b"half")
    write_whole(tmp_path / "x.json", b"new")
    assert not dead.exists() and alive.exists() and elsewhere.exists()


def test_a_folder_is_replaced_and_nothing_old_stays(tmp_path, exchanging):
    for text in ("old", "new"):
        fill(tmp_path / "out", text)
        assert (tmp_path / "out" / "a").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_as_before_if_anything_fails(tmp_path, exchanging):
    fill(tmp_path / "out", "old")
    with pytest.raises(ValueError), whole_folder(tmp_path / "out", nothing, nothing) as partial:
        (partial / "a").write_text("new")
        raise ValueError
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_in_one_step_there_is_always_a_folder(tmp_path):
    fill(tmp_path / "one", "one")
    fill(tmp_path / "two", "two")
    assert whole._exchange(tmp_path / "one", tmp_path / "two"), "this file system cannot"
    assert (tmp_path / "one" / "a").read_text() == "two"
    assert not whole._exchange(tmp_path / "one", tmp_path / "absent")


def test_a_folder_that_was_lost_between_two_renames_comes_back(tmp_path):
    for word, text in (("replaced", "old"), ("partial", "new")):
        (tmp_path / f".out.{word}-0123abcd").mkdir()
        (tmp_path / f".out.{word}-0123abcd" / "a").write_text(text)
    (tmp_path / ".out.calibration").mkdir()
    with claiming(tmp_path / "out"):
        assert (tmp_path / "out" / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.calibration", "out"]


def test_errors_of_the_system_name_the_file(tmp_path):
    with pytest.raises(OSError) as found, naming(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert found.value.filename == str(tmp_path)
    with pytest.raises(OSError) as found, naming(tmp_path):
        raise Exception("I/O error: No space left on device (os error 28)")  # as tokenizers and safetensors say it
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(tmp_path))
    with pytest.raises(OSError, match="elsewhere"), naming(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "No such file", "elsewhere")
    with pytest.raises(ValueError, match="other"), naming(tmp_path):
        raise ValueError("other")


def test_of_many_at_once_each_is_whole_or_refused(tmp_path):
    """Processes replace one folder again and again; another one reads it meanwhile: it is there, and of one writer."""
    fill(tmp_path / "out", "0")
    (tmp_path / "out" / "b").write_text("0")
    children = []
    for number in range(1, 4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(30):
                    with contextlib.suppress(BusyError), whole_folder(tmp_path / "out", nothing, nothing) as partial:
                        for name in "ab":
                            (partial / name).write_text(str(number))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    while children:
        folder = os.open(tmp_path / "out", os.O_RDONLY)  # one folder, whatever it is called by now
        with contextlib.suppress(FileNotFoundError):  # removed since, as a whole
            said = {name: Path(f"/proc/self/fd/{folder}/{name}").read_text() for name in "ab"}
            assert said["a"] == said["b"]
        os.close(folder)
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            children.remove(done)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
