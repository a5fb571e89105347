"""Disks that are full, names that cannot be, folders that go away: one sentence, and nothing is lost."""

import os
import shutil
import subprocess
import time

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from qllm_hf import loading
from qllm_hf.cli.main import app
from qllm_hf.evaluation.store import Store


def run(*words) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--quiet")])
    return done.exit_code, done.stderr


def refused(out, *words) -> str:
    code, said = run(*words)
    last = said.strip().splitlines()[-1]
    assert code == 1 and last.startswith("error: ") and str(out) in last and "--debug" not in last, said
    return last


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, which is another device than the temporary folder."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place]).returncode:
        pytest.skip("only root can mount a disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(stories, disk):
    said = refused(disk, "quantize", stories, "--scheme", "W4", "-o", disk / "out")
    assert "no space left on device" in said
    assert list(disk.iterdir()) == []


def test_a_full_disk_keeps_what_was_measured(stories, disk):
    out = disk / "out"
    words = ("evaluate", stories, "--limit", "2", "-o", out, "--tasks")
    assert run(*words, "mini_cloze")[0] == 0
    before = (out / "records.jsonl").read_bytes()
    (disk / "filler").write_bytes(b"x" * (shutil.disk_usage(disk).free - 4096))
    assert "no space left on device" in refused(out, *words, "mini_arithmetic")
    assert (out / "records.jsonl").read_bytes().startswith(before) and len(Store(out).records) == 1
    (disk / "filler").unlink()
    assert run(*words, "mini_cloze,mini_arithmetic")[0] == 0
    assert [record.task for record in Store(out).records] == ["mini_cloze", "mini_arithmetic"]
    assert not (out / "answers").exists()


def test_a_disk_that_is_read_only(stories, disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "read-only file system" in refused(disk, "quantize", stories, "--scheme", "W4", "-o", disk / "out")
    said = refused(disk, "evaluate", stories, "--tasks", "mini_cloze", "--limit", "2", "-o", disk / "out")
    assert "give another place" in said


def test_a_name_that_is_too_long(stories, tmp_path):
    said = refused(tmp_path, "quantize", stories, "--scheme", "W4", "-o", tmp_path / ("x" * 255))
    assert "file name too long. Give a shorter name." in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_removed_while_it_is_written(stories, tmp_path, monkeypatch):
    real = loading.PreTrainedModel.save_pretrained

    def save(self, folder, **options):
        real(self, folder, **options)
        shutil.rmtree(tmp_path / "parent")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", save)
    said = refused(tmp_path, "quantize", stories, "--scheme", "W4", "-o", tmp_path / "parent" / "out")
    assert "no such file or directory" in said
    assert list((tmp_path / "parent").iterdir()) == [], "which the tokenizer made again"


def test_a_model_that_is_exchanged_while_it_is_read(stories, tmp_path, monkeypatch):
    model = shutil.copytree(stories, tmp_path / "model")
    real = loading.AutoModelForCausalLM.from_pretrained

    def load(*arguments, **options):
        made = real(*arguments, **options)
        save_file({"x": next(made[0].parameters()).detach().float()}, model / "model.safetensors")
        return made

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", load)
    said = refused(model, "quantize", model, "--scheme", "W4", "-o", tmp_path / "out")
    assert "was changed while it was read: model.safetensors" in said
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_clocks_that_jump_change_nothing(stories, tmp_path, monkeypatch):
    """Nothing is decided by a date: yesterday's record is found by a run of the day before."""
    out = tmp_path / "out"
    words = ("evaluate", stories, "--limit", "2", "--tasks", "mini_cloze", "-o", out)
    now = time.time
    for jump in (0, -1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
        assert run(*words)[0] == 0
        for path in out.rglob("*"):
            os.utime(path, (now() + jump, now() + jump))
    assert len((out / "records.jsonl").read_bytes().splitlines()) == 1
