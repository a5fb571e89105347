"""What is read of a folder: hashes that tell weights apart, and only weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from publishing.models import quantized

from qllm_hf.publishing.quantized import read_quantized


@pytest.fixture(scope="module")
def folder(stories, tmp_path_factory) -> Path:
    return quantized(tmp_path_factory.mktemp("quantized") / "model", stories, "W4KV8")


def with_header(path: Path, reverse: bool = False, flip: int | None = None) -> None:
    """Write the same tensors with the metadata in another order, or with one bit changed."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    if reverse:
        header["__metadata__"] = dict(reversed(header["__metadata__"].items()))
    if flip is not None:
        rest[flip] ^= 1
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(data[:8] + text + rest)


def test_digest_is_of_the_tensors_alone(folder, tmp_path):
    before = read_quantized(folder)
    other = shutil.copytree(folder, tmp_path / "other")
    with_header(other / "model.safetensors", reverse=True)
    after = read_quantized(other)
    assert after.weights[0].sha256 != before.weights[0].sha256, "the file is another"
    assert after.digest == before.digest, "the tensors are not"
    with_header(other / "model.safetensors", flip=-1)
    assert read_quantized(other).digest != before.digest


def test_what_is_read(folder):
    model = read_quantized(folder)
    assert (model.name, model.scheme, model.has_tokenizer) == ("model", "W4KV8", True)
    assert model.recipe is not None and model.recipe.kind == "folder"
    assert model.stored == json.loads((folder / "config.json").read_text())["quantization_config"]
    assert model.weights[0].size == (folder / "model.safetensors").stat().st_size
