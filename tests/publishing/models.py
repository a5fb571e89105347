"""Quantized folders and results for tests of cards and pushes, made in this process."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from qllm_hf.cli.card import card
from qllm_hf.cli.push import push
from qllm_hf.cli.quantize import quantize
from qllm_hf.evaluation.record import Record
from qllm_hf.publishing.recipe import RECIPE

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
for each in (quantize, card, push):
    app.command()(each)


def run(*arguments: object, code: int = 0) -> Any:
    """The result of one command, in this process; its exit code is checked."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def quantized(folder: Path, model: object = "reference", scheme: str = "W4KV8", *options: object) -> Path:
    """A folder that `qllm-hf quantize` wrote."""
    run("quantize", model, "--scheme", scheme, "-o", folder, "--quiet", *options)
    return folder


def change_recipe(folder: Path, **values: Any) -> None:
    """Let the folder say something else of how it was made."""
    path = folder / RECIPE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def results(folder: Path, made: Path, *, scheme: str = "W4KV8", **changes: Any) -> Path:
    """A folder of invented results of the model that `made` was made from, under FP16, `scheme` and W3."""
    recipe = json.loads((made / RECIPE).read_text())
    stored = json.loads((made / "config.json").read_text())["quantization_config"]
    common = {
        "model": recipe["base"],
        "revision": recipe["revision"],
        "dtype": "bfloat16",
        "shots": 4,
        "items": 1319,
        "seeds": {"generation": 0, "shots": 1234},
        "versions": recipe["versions"],
        "date": "2026-01-01T00:00:00+00:00",
        "task_version": "1",
        "data": {"origin": "Hub", "digest": "12"},
    }
    tasks = {
        "qllm_gsm8k": ("emergent", "acc", 0.0, 0.5),
        "qllm_mmlu": ("emergent", "acc", 0.25, 0.6),
        "qllm_calibration": ("emergent", "acc", 0.25, 0.55),
        "mini_stories": ("nlp", "nats_per_word", None, 1.25),
    }
    kinds: dict[str, tuple[dict[str, Any], float]] = {
        "FP16": ({}, 1.0),
        scheme: (stored, 0.98),
        "W3": ({**stored, "w": 3, "kv": 16}, 0.8),
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, (quantization, factor) in kinds.items():
        for task, (ability, metric, chance, value) in tasks.items():
            stderr = math.nan if metric == "nats_per_word" and name == "W3" else 0.013
            score = {"value": value * factor, "stderr": stderr, "chance": chance}
            record = Record(scheme=name, ability=ability, task=task, metric=metric, quantization=quantization, **score,
                            **common)  # fmt: skip
            lines.append(json.dumps(replace(record, **changes).to_json()))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
