"""Damage to whole files: cut, exchanged, gone, or something else under their name."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from file_damage import whole
from file_damage.values import DEEP

from .access import shards


def _any(rng: random.Random, folder: Path) -> Path:
    return rng.choice([*shards(folder), *folder.glob("*.json")])


def cut(rng: random.Random, folder: Path) -> None:
    whole.cut(rng, _any(rng, folder))


def grow(rng: random.Random, folder: Path) -> None:
    whole.grow(rng, _any(rng, folder))


def exchange(rng: random.Random, folder: Path) -> None:
    """Two files under each other's names: what the index says is where is not there, but all of it is somewhere."""
    first, second = rng.sample([*shards(folder), *folder.glob("*.json")], 2)
    first_raw, second_raw = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_raw)
    second.write_bytes(first_raw)


def copy_over(rng: random.Random, folder: Path) -> None:
    """One shard in the place of another, so that its tensors are there twice and others not at all."""
    first, second = rng.sample(shards(folder), 2)
    shutil.copyfile(first, second)


def no_file(rng: random.Random, folder: Path) -> None:
    """A pipe, a folder, a link or nothing in the place of a file."""
    whole.no_file(rng, _any(rng, folder), folder.parent / "elsewhere")


def beside(rng: random.Random, folder: Path) -> None:
    """Something under a name that transformers looks for."""
    name = rng.choice(
        ["model.safetensors", "adapter_config.json", "generation_config.json", "pytorch_model.bin", "pipe"]
    )
    path = folder / name
    path.unlink(missing_ok=True)
    match rng.randrange(4):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.write_bytes(rng.choice([b"", b"{}", b"[]", DEEP.encode(), b"\x80\x04."]))
        case _:
            path.write_text('{"base_model_name_or_path": "../elsewhere", "peft_type": "LORA"}')
