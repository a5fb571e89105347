"""A folder that changes while it is read."""

import pytest

from qllm_hf.errors import CheckpointError
from qllm_hf.steady import unchanged


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "model.safetensors", "notes.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


def replace(path):
    """As a download does: another file under the same name, of the same length."""
    path.with_suffix(".new").write_text("x" * len(path.name))
    path.with_suffix(".new").replace(path)


def test_a_folder_that_stays_is_read(folder):
    with unchanged(folder):
        (folder / "notes.txt").write_text("no part of the model")


@pytest.mark.parametrize("change", [replace, lambda path: path.unlink(), lambda path: path.write_text("")])
def test_a_folder_that_changes_is_refused(folder, change):
    with pytest.raises(CheckpointError, match=r"changed while it was read: model\.safetensors"), unchanged(folder):
        change(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="changed while") as found, unchanged(folder):
        change(folder / "config.json")
        raise RuntimeError("half a file")
    assert isinstance(found.value.__cause__, RuntimeError)


def test_another_error_stays_itself(folder):
    with pytest.raises(RuntimeError, match="mine"), unchanged(folder):
        raise RuntimeError("mine")
