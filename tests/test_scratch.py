"""Temporary folders are removed: at the end, and of killed processes by the next one."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qllm_hf.processes import this_machine
from qllm_hf.scratch import temporary_folder


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_it_is_gone_at_the_end(tmp_path):
    with temporary_folder("qllm-x") as folder:
        (folder / "weights").write_bytes(b"1")
        assert folder.parent == tmp_path and folder.name.startswith("qllm-x-")
    with pytest.raises(ValueError), temporary_folder("qllm-x"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    code = "import sys; from qllm_hf.scratch import temporary_folder as f\n"
    code += "with f('qllm-x') as folder: (folder / 'w').write_bytes(b'1'); print(folder, flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    left = Path(process.stdout.readline().strip())
    with temporary_folder("qllm-x"):
        assert (left / "w").exists(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (left / "w").exists()
    with temporary_folder("qllm-other"):
        assert left.exists()
    with temporary_folder("qllm-x"):
        assert not left.exists()


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_what_is_not_ours_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    linked = tmp_path / "somewhere"
    linked.mkdir()
    (linked / "w").write_bytes(b"1")
    link = tmp_path / f"qllm-x-{this_machine()}-{ended.pid}-abc"
    link.symlink_to(linked)
    others = [tmp_path / f"qllm-x-{'0' * 8}-{ended.pid}-abc", tmp_path / f"qllm-x-{this_machine()}-{ended.pid}-a b"]
    for each in others:
        each.mkdir()
    with temporary_folder("qllm-x"):
        assert link.is_symlink() and (linked / "w").exists() and all(each.is_dir() for each in others)
