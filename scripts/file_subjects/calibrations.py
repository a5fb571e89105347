"""Calibration: the work folder of one that was stopped, its text, a table of sensitivities, and an AWQ result."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny_models import float_model, prompt

from qllm_hf import QllmConfig
from qllm_hf.config import QllmConfig as Config
from qllm_hf.loading import load_tokenizer
from qllm_hf.methods import engine
from qllm_hf.methods.calibration import Calibration, read_calibration
from qllm_hf.methods.stored import read_stored
from qllm_hf.streamed import quantize_streamed

from .reading import Subject

# a run belongs to the folder of its model, so that stays where it is
_MODEL = tempfile.TemporaryDirectory()


class _StoppedError(Exception):
    pass


def _quantize(folder: Path) -> Any:
    text = Calibration(prompt("llama", batch=4), "ids")
    config = QllmConfig(w=3, w_group_size=32, method="awq+gptq", calibration=text)
    return quantize_streamed(str(_MODEL.name), config, text, folder / "work")


def make_work(folder: Path) -> None:
    """A calibration that was stopped after the first of two blocks."""
    float_model("llama").save_pretrained(_MODEL.name)
    original = engine._quantize_block

    def stopping(run: Any, index: int) -> set[str]:
        if index == 1:
            raise _StoppedError
        return original(run, index)

    engine._quantize_block = stopping
    try:
        _quantize(folder)
    except _StoppedError:
        pass
    finally:
        engine._quantize_block = original


def go_on(folder: Path, out: Path) -> Any:
    model, _ = _quantize(folder)
    digest = {name: tensor.view(torch.uint8).sum().item() for name, tensor in model.state_dict().items()}
    return digest, model.config.quantization_config.to_dict()


def make_text(folder: Path) -> None:
    lines = [{"text": f"Once upon a time there were {number} little bears in a wood. " * 8} for number in range(12)]
    (folder / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "text.txt").write_text("\n\n".join(line["text"] for line in lines))


def read_texts(folder: Path, out: Path) -> Any:
    tokenizer = load_tokenizer("reference")
    names = ("text.jsonl", "text.txt")
    return [read_calibration(folder / name, tokenizer, samples=4, seqlen=64).digest() for name in names]


def make_table(folder: Path) -> None:
    bits = {str(number): {"size": 1000 * number, "kl": 0.5**number} for number in (2, 3, 4, 8)}
    layers = {f"model.layers.{n}.mlp.up_proj": {"elements": 8000, "bits": bits} for n in range(3)}
    summary = {"source": "ids", "samples": 4, "seqlen": 16, "digest": "0123456789abcdef"}
    table = {"format": 1, "group_size": 32, "symmetric": False, "calibration": summary, "layers": layers}
    (folder / "table.json").write_text(json.dumps(table))


def spend(folder: Path, out: Path) -> Any:
    return Config.from_budget(3.5, sensitivity=str(folder / "table.json"), w_group_size=32).to_dict()


def make_result(folder: Path) -> None:
    scale = [("model.layers.0.input_layernorm", ("model.layers.0.self_attn.q_proj",), torch.ones(64))]
    torch.save({"scale": scale, "clip": [("model.layers.0.mlp.up_proj", torch.ones(88, 2, 1))]}, folder / "awq.pt")


def read_result(folder: Path, out: Path) -> Any:
    found = read_stored(folder / "awq.pt")
    return repr(found.scales), repr(found.limits)


def _text_files(folder: Path) -> list[Path]:
    return [folder / "text.jsonl", folder / "text.txt"]


SUBJECTS = {
    "work folder": Subject(
        make_work, lambda folder: sorted(p for p in (folder / "work").rglob("*.*")), go_on, is_quick=False
    ),
    "calibration text": Subject(make_text, _text_files, read_texts, says_so=True),
    "sensitivity table": Subject(make_table, lambda folder: [folder / "table.json"], spend, says_so=True),
    "awq result": Subject(make_result, lambda folder: [folder / "awq.pt"], read_result, says_so=True),
}
