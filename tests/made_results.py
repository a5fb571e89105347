"""Folders of results without a model: records and samples as a sweep leaves them, with values that are given."""

import json
from pathlib import Path

from qllm_hf.evaluation.record import Record
from qllm_hf.evaluation.registry import find_task
from qllm_hf.evaluation.statistics import mean
from qllm_hf.evaluation.store import Store
from qllm_hf.results import Size, write_size

MODEL, REVISION = "somebody/model", "files:0123456789ab"


def record_of(scheme: str, task: str, values: list[float], **changes) -> Record:
    info, found = find_task(task), mean(values)
    fields = {
        "scheme": scheme,
        "ability": info.ability,
        "task": task,
        "metric": info.metric,
        "value": found.value,
        "stderr": found.stderr,
        "items": len(values),
        "chance": info.chance,
        "best": info.best,
        "model": MODEL,
        "revision": REVISION,
        "quantization": {} if scheme == "FP16" else {"quant_method": "qllm", "label": scheme},
        "dtype": "float32",
        "data": {"origin": "made", "digest": "d"},
        "versions": {"qllm_hf": "0", "torch": "2"},
        "hardware": {"device": "none", "threads": "1"},
        "seeds": {"generation": 0},
        "seconds": 1.0,
        "date": "2026-01-02T03:04:05+00:00",
    }
    return Record(**{**fields, **changes})


def add(folder: Path, scheme: str, task: str, values: list[float], lines: list[dict] | None = None, **changes) -> None:
    """One score; `lines` add to what is kept of each item."""
    record = record_of(scheme, task, values, **changes)
    more = lines or [{} for _ in values]
    samples = [
        {"id": number, "value": value, **line} for number, (value, line) in enumerate(zip(values, more, strict=True))
    ]
    Store(folder).add(record, samples)


def add_size(folder: Path, scheme: str, **changes) -> None:
    fields = {
        "scheme": scheme,
        "model": MODEL,
        "revision": REVISION,
        "dtype": "float16",
        "elements": 1000,
        "bits_per_weight": 16.0,
        "weight_bytes": 2000,
        "kv": ((64, None),),
        "coverage": 1.0,
    }
    write_size(folder, Size(**{**fields, **changes}))


def rewrite(path: Path, change) -> None:
    """Change each line of a file of JSON lines on purpose: its checksum is taken out."""
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("crc32", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
