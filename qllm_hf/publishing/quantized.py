"""A folder that `qllm-hf quantize` wrote, with everything that a card says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from ..checkpoint import Checkpoint, read_checkpoint
from ..config import QllmConfig
from ..errors import CheckpointError
from ..loading import check_stored, model_on_meta, stored_config
from ..preflight import check_config
from ..reporting.model import plan_report
from ..reporting.values import Report
from ..revision import revision_of
from .problems import PublishError
from .recipe import Recipe, read_recipe

TOKENIZER: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file: name, bytes, SHA-256 of the file, and of its tensors alone."""

    name: str
    size: int
    sha256: str
    content: str


@dataclass(frozen=True)
class Quantized:
    """A quantized model in a folder.

    Attributes:
        config: how it is quantized.
        stored: the same as JSON holds it, to compare with records.
        report: bytes, bits, coverage, KV cache.
        weights: its files, with hashes.
        revision: digest of the folder, as records of this very folder have it.
        recipe: how it was made; None if the folder does not say.
        has_tokenizer: whether text can be given to it.
    """

    folder: Path
    config: QllmConfig
    stored: Mapping[str, Any]
    report: Report
    weights: tuple[WeightFile, ...]
    revision: str
    recipe: Recipe | None
    has_tokenizer: bool

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def scheme(self) -> str:
        """Such as "W4KV8"."""
        return str(self.config.scheme)

    @property
    def digest(self) -> str:
        """What tells these weights from others: 12 digits of a SHA-256 over the tensors of all files."""
        return sha256("".join(file.content for file in self.weights).encode()).hexdigest()[:12]


def read_quantized(folder: str | Path) -> Quantized:
    """What is in a folder; no weights are loaded, but their files are read once for the hashes.

    Raises:
        CheckpointError: files are missing or damaged.
        PublishError: it holds a float model.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {str(folder)!r}. Give the one that `qllm-hf quantize -o` wrote.")
    config = stored_config(str(path))
    checkpoint = read_checkpoint(path)
    if config is None:
        raise PublishError(
            f"{str(folder)!r} holds a float model. Quantize it first: qllm-hf quantize {folder} --scheme W4KV8 -o DIR"
        )
    check_config(checkpoint)
    shapes = model_on_meta(str(path))
    check_stored(shapes, config, checkpoint)
    return Quantized(
        folder=path,
        config=config,
        stored=json.loads(json.dumps(config.to_dict(), default=str)),
        report=plan_report(shapes, config, "stored"),
        weights=_weight_files(checkpoint),
        revision=revision_of(str(path), None),
        recipe=read_recipe(path),
        has_tokenizer=any((path / name).is_file() for name in TOKENIZER),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; a file that did not change is read once."""
    stat = path.stat()
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    return _hashed(path, sha256())


def _content_of(path: Path) -> str:
    """SHA-256 of the tensors of a safetensors file: their names, dtypes, shapes and numbers.

    The file's own hash can differ for the same tensors, since safetensors writes its metadata in any order.
    """
    found = sha256()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found.update(json.dumps(header, sort_keys=True).encode())
    return _hashed(path, found, start=8 + length)


def _hashed(path: Path, found: Any, start: int = 0) -> str:
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return str(found.hexdigest())


def _weight_files(checkpoint: Checkpoint) -> tuple[WeightFile, ...]:
    return tuple(
        WeightFile(file.name, file.stat().st_size, sha256_of(file), _content_of(file)) for file in checkpoint.files
    )
