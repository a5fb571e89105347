"""Statistics as plain values for a JSON file, and as files in a folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers

from .. import __version__
from ..errors import CheckpointError
from ..whole import write_whole
from .gathering import Row
from .streaming import OUTLIER
from .verdict import counts, explain, judge, limits, reasons

FORMAT = 1
STATS_FILE = "stats.json"
CHANNELS_FILE = "channels.safetensors"


def versions() -> dict[str, str]:
    """Versions of everything that can move a number."""
    return {
        "qllm_hf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def record(model: str, config: Any, rows: Sequence[Row], calibration: dict[str, Any] | None) -> dict[str, Any]:
    """What is said of one model: where the numbers are from, each tensor, and the verdict.

    Args:
        config: of the model.
        calibration: `Calibration.summary()`, or None where only weights were looked at.
    """
    text = config.get_text_config(decoder=True)
    return {
        "model": model,
        "model_type": config.model_type,
        "hidden_size": getattr(text, "hidden_size", None),
        "vocab_size": getattr(text, "vocab_size", None),
        "linear_weights": sum(row.summary.count for row in rows if row.kind == "W"),
        "calibration": calibration,
        "definitions": {
            "kurtosis": "Pearson's: a normal distribution has 3; excess_kurtosis is Fisher's, 3 less",
            "std": "of the numbers seen, divided by their count",
            "outlier_ratio": f"share of the numbers further than {OUTLIER:g} std from the mean, from a histogram",
            "sqnr": "dB, of the tensor itself, by bits; null: nothing is lost",
            "effect": "by bits; what it is stands in measure: sqnr (dB), output_sqnr (dB in the output of the layer), "
            "logit_noise (nats in the logits of attention)",
            "channels": f"of the last dimension; their ranges are in {CHANNELS_FILE}",
        },
        "verdict": {kind: {str(bits): words for bits, words in found.items()} for kind, found in counts(rows).items()},
        "sentences": explain(rows),
        "tensors": [_tensor(row) for row in rows],
    }


def _tensor(row: Row) -> dict[str, Any]:
    words = judge(row)
    return {
        "kind": row.kind,
        "name": row.name,
        "block": row.block,
        "readers": list(row.readers),
        **asdict(row.summary),
        "sqnr": {str(bits): value for bits, value in row.sqnr.items()},
        "measure": row.measure,
        "limits": list(limits(row)),
        "effect": {str(bits): value for bits, value in row.effect.items()},
        "verdict": {str(bits): word for bits, word in words.items()},
        "reasons": reasons(row),
    }


def check_folder(folder: Path) -> None:
    """Raises CheckpointError if results cannot go into a folder of that name."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} is a file. Give a folder for the results.")


def save(folder: Path, data: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """The files written: stats.json, and the ranges of all channels as KIND.NAME.low and .high [C].

    Each appears under its name when it is whole.
    """
    ranges = {}
    for row in rows:
        ranges[f"{row.kind}.{row.name}.low"] = row.channel_low
        ranges[f"{row.kind}.{row.name}.high"] = row.channel_high
    content = {
        STATS_FILE: json.dumps(data, indent=2).encode() + b"\n",
        CHANNELS_FILE: safetensors.torch.save(ranges),
    }
    for name, written in content.items():
        write_whole(folder / name, written)
    return [folder / name for name in content]
