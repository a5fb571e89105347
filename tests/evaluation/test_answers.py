"""Files of answers that several processes of one machine keep in the same folder."""

import os
from pathlib import Path

from qllm_hf.evaluation.answers import Answered, Journal


def test_processes_that_end_at_the_same_time_remove_them_once(tmp_path, monkeypatch):
    """All of them drop them after the last answer. One finds the folder, and another removes it before it is opened."""
    folder = tmp_path / "answers"
    journals = [Journal(folder, rank) for rank in range(2)]
    for journal in journals:
        journal.add("key", Answered([["text", 1]], 0.5))
    scandir = os.scandir

    def late(path):
        if Path(path) == folder:
            monkeypatch.undo()
            journals[1].drop(tidy=True)
            assert not folder.exists()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    journals[0].drop()
    assert not folder.exists()
