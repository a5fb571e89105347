"""What is left of a run: whether it is as before, as after, or something that nobody may take for either."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from qllm_hf import loading
from qllm_hf.errors import CheckpointError, QllmError
from qllm_hf.results import read_results

IDS = torch.tensor([[1, 5, 9, 2]])
OF_TIME = ("date", "seconds", "since", "crc32")
"""What differs from one run to the next and is no result; the checksum is of these too."""


def tree(place: Path) -> dict[str, bytes]:
    """{relative path: content} of files, links and empty folders; a lock file counts with its name alone."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_file():
            found[name] = b"" if path.name.endswith(".lock") else plain(path)
        elif name != "tmp" and not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def plain(path: Path) -> bytes:
    """The content of a file without times; lines that are there twice count once (a command that was given twice)."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":  # whose metadata safetensors writes in any order
        length = int.from_bytes(content[:8], "little")
        with contextlib.suppress(ValueError):
            header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
            return header + content[8 + length :]
        return content
    if path.suffix != ".jsonl":
        return content
    lines = {}
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            lines[repr(line)] = line
            continue
        for key in OF_TIME:
            entry.pop(key, None)
        lines[json.dumps(entry, sort_keys=True)] = b""
    return "\n".join(lines).encode()


def is_pythons_probe(name: str, content: bytes) -> bool:
    """Whether a file is what `tempfile` tries a folder with before it first uses it; a killed process leaves it."""
    return re.fullmatch(r"tmp/[a-z0-9_]{8}", name) is not None and b"blat".startswith(content)


def in_another_order(name: str, one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    """Whether a file of results has the same lines in both, or is drawn from lines that are the same in both."""

    def same(lines: str) -> bool:
        return sorted(one[lines].splitlines()) == sorted(other[lines].splitlines())

    if name.endswith((".jsonl", ".csv")):
        return same(name)
    numbers = str(Path(name).with_suffix(".csv"))
    if name.endswith((".png", ".svg")) and numbers in one:
        return one[numbers] != other[numbers] and same(numbers)
    records = str(Path(name).with_name("records.jsonl"))
    return name.endswith("report.html") and one[records] != other[records] and same(records)


@torch.no_grad()
def _logits(model: Any) -> list[float]:
    values: list[float] = model.eval()(IDS, use_cache=False).logits.flatten().tolist()
    return values


def read_model(folder: Path) -> dict[str, Any]:
    """What readers make of a folder: {reader: logits, or the name and text of an error}."""
    found: dict[str, Any] = {}
    for reader, read in {
        "load_model": lambda: loading.load_model(str(folder)),
        "transformers": lambda: AutoModelForCausalLM.from_pretrained(folder),
    }.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[reader] = _logits(read())
        except QllmError as error:
            found[reader] = f"refused: {error}"
        except Exception as error:
            found[reader] = f"{type(error).__name__}: {error}"
    return found


def half_written(found: dict[str, bytes], *whole: dict[str, bytes]) -> list[str]:
    """Files that are as in none of some trees, but for those that are hidden."""
    return [
        name
        for name, content in found.items()
        if not Path(name).name.startswith(".") and all(content != each.get(name) for each in whole)
    ]


def read_folder_of_results(folder: Path) -> str:
    """ "" if `report` and `recommend` could read a folder, or would say that there is nothing yet."""
    try:
        results = read_results(folder)
    except CheckpointError as error:
        return "" if "there are no results" in str(error) else str(error)
    lost = [record.task for record in results.records if not results.lines(record)]
    return f"a score without its samples: {lost}" if lost else ""
