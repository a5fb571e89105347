"""A checkpoint of another library, made into one of ours: read and written tensor by tensor.

What is done with each quantized layer: its codes are unpacked and packed in our layout (docs/format.md), its scales are
copied, its zero points become one byte each. Nothing is computed, so nothing is lost. Everything else in the files is
copied as it is. Memory holds one layer at a time, or the experts of one layer.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_checkpoint, read_config
from ..config import FORMAT, QllmConfig
from ..errors import CheckpointError, ConfigError
from ..loading import config_dict, local_folder, model_on_meta, whole_folder
from ..preflight import check_config, refusing
from ..safetensors_stream import SHARD_BYTES, write_items
from ..steady import unchanged
from .config import ACTIVATIONS, Activations
from .job import Job
from .peers import OWN_FILES, Peer, read_peer
from .tensors import Tensors

# Files of a model folder that go on as they are: tokenizer, templates, generation, legal texts.
COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
NOT_COPIED = ("config.json", "*.safetensors.index.json", "quantization_config.json", "recipe.yaml", *OWN_FILES)


@dataclass(frozen=True)
class Imported:
    """What came of a checkpoint.

    Attributes:
        folder: where it is.
        config: how it is quantized.
        peer: what it was before.
        notes: sentences on what the user may not expect.
    """

    folder: Path
    config: QllmConfig
    peer: Peer
    notes: tuple[str, ...]


def import_checkpoint(
    folder: str | Path,
    out_dir: str | Path,
    *,
    activations: Activations = "same",
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    others: Mapping[str, bytes] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """The folder `out_dir` with a checkpoint of ours that holds the integers and scales of one of another library.

    Args:
        folder: an AWQ, GPTQ, AutoRound or compressed-tensors checkpoint with integer weights.
        activations: what becomes of inputs that the other library quantizes: "same" refuses where our formula is not
            theirs, "ours" quantizes them by ours, "float" leaves them in floating point.
        others: further files, {name: content}.
        progress: called with the bytes of each tensor that was written.

    Raises:
        CheckpointError: files are missing or damaged, hold floats or another layout, do not fit together, or mean
            something that our format cannot say. Nothing is written then.
    """
    if activations not in ACTIVATIONS:
        raise ConfigError(f"activations={activations!r}: allowed are {', '.join(ACTIVATIONS)}.")
    source = source_folder(folder)
    place = Path(out_dir).expanduser()
    if source.resolve() == place.resolve():
        raise CheckpointError(f"{str(folder)!r} would be replaced by its imported form. Save in another folder.")
    peer = read_peer(source, read_config(source))
    checkpoint = read_checkpoint(source)
    check_config(checkpoint, trust_remote_code=trust_remote_code)
    config_dict(str(source), trust_remote_code=trust_remote_code)
    model = model_on_meta(str(source), trust_remote_code=trust_remote_code)
    with _naming(source), Tensors(checkpoint) as tensors:
        job = Job(checkpoint, peer, model, tensors, activations)
        with whole_folder(place, overwrite=overwrite) as partial, unchanged(source):
            write_items(
                partial,
                list(job.items()),
                shard_bytes=shard_bytes,
                metadata={"qllm_format": str(FORMAT)},
                progress=progress,
            )
            _write_config(partial, checkpoint.config, job.config, job.dtype)
            _copy_files(source, partial)
            for name, content in (others or {}).items():
                (partial / name).write_bytes(content)
    return Imported(place.absolute(), job.config, peer, tuple(job.notes))


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """What is wrong with a layer, or what a library makes of values that nobody expects, with the folder it is in."""
    try:
        with refusing(f"{folder} cannot be imported"):
            yield
    except CheckpointError as error:
        if str(folder) in str(error):
            raise
        raise CheckpointError(f"{folder}: {error}") from error


def source_folder(folder: str | Path) -> Path:
    """The folder itself. Raises CheckpointError if it is none here."""
    found = local_folder(str(folder))
    if found is None:
        raise CheckpointError(
            f"there is no folder {str(folder)!r}. Download it first: hf download {folder} --local-dir DIR"
        )
    return found


def _write_config(folder: Path, config: Mapping[str, Any], ours: QllmConfig, dtype: torch.dtype) -> None:
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "compression_config")}
    kept |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": ours.to_dict()}
    text = json.dumps(dict(sorted(kept.items())), indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _copy_files(source: Path, folder: Path) -> None:
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern)}):
        if path.is_file() and not any(path.match(pattern) for pattern in NOT_COPIED):
            shutil.copyfile(path, folder / path.name)
