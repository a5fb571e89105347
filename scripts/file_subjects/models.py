"""Models of others and for others: checkpoints to import, packed ones to export, and what their cards are made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from peer_checkpoints import CASES, write_checkpoint
from safetensors.torch import load_file

from .reading import ACTS_ON_PAGES, Subject, command, look_at


def make_peer(case: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_checkpoint(CASES[case], folder / "peer", folder / "floats")
        shutil.rmtree(folder / "floats")

    return make


def _sums(folder: Path) -> Any:
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    return {name: (str(each.dtype), list(each.shape), each.double().sum().item()) for name, each in tensors.items()}


def import_peer(folder: Path, out: Path) -> Any:
    command("import", folder / "peer", "-o", out / "model", "--quiet", "--activations", "float")
    return _sums(out / "model"), json.loads((out / "model" / "config.json").read_text())["quantization_config"]


def _in(name: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(path for path in (folder / name).rglob("*") if path.is_file())


def make_packed(folder: Path) -> None:
    """A packed model with a tokenizer that llama.cpp knows, its recipe, results of it, and a base with a card."""
    from file_subjects.results import make_sweep

    command("quantize", "reference", "--scheme", "W4KV4", "-o", folder / "packed", "--quiet")
    make_sweep(folder / "results")
    command("card", folder / "packed", "--results", folder / "results", "--license", "mit", "--quiet")


def export(*options: str) -> Callable[[Path, Path], Any]:
    def read(folder: Path, out: Path) -> Any:
        place = out / ("model.gguf" if "gguf" in options else "model")
        command("export", folder / "packed", "-o", place, *options, "--quiet")
        return place.read_bytes() if place.is_file() else _sums(place)

    return read


def _weights(folder: Path) -> list[Path]:
    packed = folder / "packed"
    return [packed / "model.safetensors", packed / "config.json", packed / "tokenizer.json"]


def write_card(folder: Path, out: Path) -> Any:
    """The card that is made again of all that lies there."""
    options = ("--license", "mit", "--repo", "owner/name", "--quiet")
    command("card", folder / "packed", "--results", folder / "results", *options)
    card = (folder / "packed" / "README.md").read_text()
    _, _, text = card.partition("\n---\n")
    look_at(text.partition("<!-- qllm_hf -->")[2], (*ACTS_ON_PAGES, "\x1b"))
    return card


def plan_push(folder: Path, out: Path) -> Any:
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return command("push", folder / "packed", "owner/name", "--dry-run", "--quiet", "--json")
    finally:
        constants.HF_HUB_OFFLINE = before


def _card_files(folder: Path) -> list[Path]:
    packed = folder / "packed"
    return [packed / "README.md", packed / "qllm_recipe.json", *sorted((folder / "results").rglob("*.jsonl"))]


def _push_files(folder: Path) -> list[Path]:
    packed = folder / "packed"
    return [packed / "README.md", packed / "qllm_results" / "records.jsonl", *sorted(packed.rglob("*.yaml"))]


SUBJECTS = {
    "import gptq": Subject(make_peer("gptq in act order"), _in("peer"), import_peer, says_so=True, is_quick=False),
    "import awq": Subject(make_peer("awq"), _in("peer"), import_peer, says_so=True, is_quick=False),
    "import compressed-tensors": Subject(
        make_peer("pack-quantized 3 bits"), _in("peer"), import_peer, says_so=True, is_quick=False
    ),
    "export": Subject(make_packed, _weights, export(), says_so=True, is_quick=False),
    "export gguf": Subject(make_packed, _weights, export("--format", "gguf"), says_so=True, is_quick=False),
    "card": Subject(make_packed, _card_files, write_card, says_so=True, is_quick=False),
    "push": Subject(make_packed, _push_files, plan_push, says_so=True, is_quick=False),
}
