"""One writer for a folder: whoever comes second is told who is there, and no dead process keeps a lock."""

import errno
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from qllm_hf import lock
from qllm_hf.errors import BusyError, QllmWarning
from qllm_hf.lock import beside, holding, inside, undisturbed


@pytest.fixture
def place(tmp_path):
    return tmp_path / "out"


def take(place: Path) -> None:
    with holding(beside(place), place, "Wait."):
        pass


@pytest.fixture
def forked():
    """Forks a process that does something and then sleeps; it is killed at the end."""
    children = []

    def fork(act) -> int:
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                act(lambda: os.write(there, b"1"))
                time.sleep(60)
            finally:
                os._exit(0)
        children.append(child)
        assert os.read(here, 1) == b"1"
        return child

    yield fork
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def hold_and(place: Path, then):
    def act(ready):
        with holding(beside(place), place, "Wait."):
            then(ready)
            time.sleep(60)

    return act


def test_the_second_one_is_told_who_is_there(place, forked):
    child = forked(hold_and(place, lambda ready: ready()))
    with pytest.raises(BusyError, match="Wait") as refused:
        take(place)
    said = rf"'{re.escape(str(place))}' is being written by process {child} on {socket.gethostname()} since 20\d\d-"
    assert re.match(said, str(refused.value))
    with pytest.raises(BusyError):
        take(place)  # the first refusal has changed nothing


def test_a_killed_process_keeps_no_lock(place, tmp_path):
    child = os.fork()
    if child == 0:
        with holding(beside(place), place, "Wait."):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert beside(place).is_file()  # which means nothing
    take(place)
    assert list(tmp_path.iterdir()) == []


def test_a_child_does_not_keep_the_lock_of_its_parent(place, forked, tmp_path):
    """A worker that was forked has a copy of the descriptor, and may outlive who forked it."""

    def fork_worker(ready):
        if os.fork() == 0:
            (tmp_path / "worker").write_text(str(os.getpid()))
            ready()
            time.sleep(60)

    child = forked(hold_and(place, fork_worker))
    try:
        os.kill(child, signal.SIGKILL)
        until = time.monotonic() + 5
        while True:  # the kernel takes a moment
            try:
                take(place)
                break
            except BusyError:
                assert time.monotonic() < until
                time.sleep(0.01)
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_who_holds_it_may_ask_again_and_another_thread_may_not(place, tmp_path):
    refused = []

    def try_it():
        try:
            take(place)
        except BusyError as error:
            refused.append(str(error))

    with holding(beside(place), place, "Wait."):
        take(place)
        assert beside(place).is_file(), "the inner one does not give back the outer one's"
        other = threading.Thread(target=try_it)
        other.start()
        other.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_was_removed_meanwhile_is_not_held(place, monkeypatch):
    """Between opening and locking, the last holder removed the file: a third process would make, and lock, another."""
    real, times = lock.lock_descriptor, []

    def slow(descriptor, **options):
        times.append(descriptor)
        if len(times) == 1:
            beside(place).unlink()
        return real(descriptor, **options)

    monkeypatch.setattr(lock, "lock_descriptor", slow)
    with holding(beside(place), place, "Wait."):
        assert len(times) == 2 and beside(place).is_file()


def test_a_file_system_without_locks_is_said(place, monkeypatch):
    def none(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "lock_descriptor", none)
    with pytest.warns(QllmWarning, match="has no locks"):
        take(place)


def test_a_folder_that_grows_has_its_lock_inside(tmp_path):
    with holding(inside(tmp_path / "results"), tmp_path / "results", "Wait."):
        assert (tmp_path / "results" / ".lock").is_file()
    assert list((tmp_path / "results").iterdir()) == []


def test_a_folder_that_is_removed_underneath_does_no_harm(tmp_path):
    with holding(inside(tmp_path / "results"), tmp_path / "results", "Wait."):
        (tmp_path / "results" / ".lock").unlink()
        (tmp_path / "results").rmdir()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_waits_until_a_step_is_done():
    done = []
    with pytest.raises(KeyboardInterrupt), undisturbed():
        with undisturbed():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_a_lock_is_taken_leaves_none(place, tmp_path, monkeypatch):
    real = lock._take

    def take_and_press(*arguments):
        descriptor = real(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return descriptor

    monkeypatch.setattr(lock, "_take", take_and_press)
    with pytest.raises(KeyboardInterrupt), holding(beside(place), place, "Wait."):
        pytest.fail("it should have been stopped")
    assert list(tmp_path.iterdir()) == [] and lock._held == {}


def test_a_lock_that_cannot_be_signed_is_not_left_behind(place, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "write", full)
    with pytest.raises(OSError, match="No space left") as refused, holding(beside(place), place, "Wait."):
        pytest.fail("it should have been refused")
    assert refused.value.filename == str(beside(place)) and list(tmp_path.iterdir()) == []
