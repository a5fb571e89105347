"""A packed checkpoint as a checkpoint of another kind, tensor by tensor: no model is ever in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checkpoint import INDEX, OTHER_FORMATS
from ..errors import ConfigError, ModelError, did_you_mean
from ..loading import check_output, local_folder, whole_folder
from ..safetensors_stream import DTYPES, SHARD_BYTES, Item, write_items
from ..steady import unchanged
from .groups import Group, group_of, quantization_config
from .layers import layer_items
from .plain import plain_items
from .reading import Reading, check_readers, readings, shortcoming
from .serving import kv_cache_dtype, lost_words
from .stored import StoredModel, StoredWeight, open_stored

COMPRESSED_TENSORS = "compressed-tensors"
FLOAT = "float"
FORMATS = (COMPRESSED_TENSORS, FLOAT)
_NOT_COPIED = ("config.json", "README.md", "qllm_recipe.json", INDEX)
"""What says something of the packed checkpoint that does not hold for the exported one."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where.
        format: of `FORMATS`.
        groups: how weights are quantized -> how many matrices are.
        readings: reader -> what it makes of this checkpoint; empty for a float one, which everything reads.
        lost: sentences on what the packed checkpoint says and this one does not.
        kv_cache_dtype: value of vLLM's `--kv-cache-dtype` that comes nearest, or None.
        bytes_before, bytes_after: of the safetensors files.
    """

    folder: Path
    format: str
    groups: dict[Group, int]
    readings: dict[str, Reading]
    lost: tuple[str, ...]
    kv_cache_dtype: str | None
    bytes_before: int
    bytes_after: int


def export_checkpoint(
    source: str,
    out_dir: Path,
    *,
    format: str = COMPRESSED_TENSORS,
    reader: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    trust_remote_code: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Exported:
    """The folder `out_dir` with the weights of a packed checkpoint in another format: the same numbers, bit for bit.

    Written to a folder beside it, checked, and renamed. One tensor is in memory at a time.

    Args:
        source: a folder that `qllm-hf quantize` or `save_pretrained` wrote.
        format: "compressed-tensors", or "float" for ordinary weights.
        reader: one of `readers.READERS` that has to be able to read it; by default it is enough if any can.
        shard_bytes: what a file holds at most.
        progress: called with the bytes of each tensor that was written.

    Raises:
        CheckpointError: files are missing, damaged or half written, the model is a float one, or `out_dir` is in use.
        ModelError: the format cannot say how the weights are quantized, or nobody could read it.
        ConfigError: there is no such format or reader.
    """
    if format not in FORMATS:
        known = (*FORMATS, "gguf")
        raise ConfigError(
            f"format={format!r}.{did_you_mean(format, known)} Formats are {', '.join(FORMATS)}, and gguf, which is one "
            "file (qllm_hf.export.gguf.export_gguf)."
        )
    check_output(out_dir, overwrite=overwrite)
    folder = local_folder(source)
    if folder is not None and folder.resolve() == out_dir.expanduser().resolve():
        raise ModelError(f"{source!r} would be replaced by its own exported form. Export to another folder.")
    with open_stored(source, trust_remote_code=trust_remote_code) as stored:
        content = _float(stored) if format == FLOAT else _compressed_tensors(stored, reader)
        others = [_as_it_is(stored, name) for name in stored.others]
        with whole_folder(out_dir, overwrite=overwrite) as partial, unchanged(stored.folder):
            write_items(partial, [*content.items, *others], shard_bytes=shard_bytes, progress=progress)
            _copy_companions(stored.folder, partial)
            config = _config_json(stored, content.quantization)
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return Exported(
        folder=out_dir,
        format=format,
        groups=content.groups,
        readings=content.readings,
        lost=content.lost,
        kv_cache_dtype=kv_cache_dtype(stored.config.scheme),
        bytes_before=stored.checkpoint.file_bytes,
        bytes_after=sum(file.stat().st_size for file in out_dir.expanduser().glob("*.safetensors")),
    )


class _Content(NamedTuple):
    """What stands for the packed weights in another format."""

    items: list[Item]
    quantization: dict[str, Any] | None
    groups: dict[Group, int]
    readings: dict[str, Reading]
    lost: tuple[str, ...]


def _float(stored: StoredModel) -> _Content:
    items = [item for weight in stored.weights for item in plain_items(stored, weight)]
    return _Content(items, None, {}, {}, tuple(lost_words(stored.config, is_float=True)))


def _compressed_tensors(stored: StoredModel, reader: str | None) -> _Content:
    """Everything that can be refused is refused here, before anything is written."""
    if not stored.weights:
        raise ModelError(
            f"{str(stored.folder)!r} holds no packed weights, only KV{stored.config.kv} for its cache. Export --format "
            "float: the same weights without the words that other programs do not know."
        )
    groups = [_group(weight) for weight in stored.weights]
    pairs = list(zip(stored.weights, groups, strict=True))
    kept = stored.kept()
    found = readings(stored.weights, groups, kept, str(stored.checkpoint.config.get("model_type")))
    check_readers(found, reader, groups)
    items: list[Item] = []
    matrices: dict[Group, int] = {}
    for weight, group in pairs:
        matrices[group] = matrices.get(group, 0) + len(weight.pieces)
        for piece in weight.pieces:
            items += layer_items(stored, weight, piece, group)
    lost = [*lost_words(stored.config, is_float=False), shortcoming(found, groups)]
    return _Content(items, quantization_config(pairs, kept), matrices, found, tuple(word for word in lost if word))


def _group(weight: StoredWeight) -> Group:
    if not weight.is_layers:
        raise ModelError(
            f"{weight.entry.module} keeps all experts in one tensor also in its float checkpoints, and "
            "compressed-tensors has names for matrices of single layers only. Export --format float, or serve the "
            "packed model with transformers as it is."
        )
    return group_of(weight.entry)


def _as_it_is(stored: StoredModel, name: str) -> Item:
    described = stored.checkpoint.tensors[name]
    dtype: torch.dtype | None = DTYPES.get(described.dtype)
    if dtype is None:
        raise ModelError(f"{name} has dtype {described.dtype}, which export cannot copy.")
    return Item(name, dtype, described.shape, lambda: stored.tensor(name))


def _config_json(stored: StoredModel, quantization: dict[str, Any] | None) -> dict[str, Any]:
    config = {key: value for key, value in stored.checkpoint.config.items() if key != "quantization_config"}
    if any(weight.entry.is_head for weight in stored.weights):
        # the packed head has weights of its own: a reader that ties it to the embedding would lose them
        config["tie_word_embeddings"] = False
    return config if quantization is None else {**config, "quantization_config": quantization}


def _copy_companions(folder: Path, out: Path) -> None:
    """Tokenizer, generation config, chat templates, licences: all that says nothing of how weights are stored."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", *OTHER_FORMATS) or path.name in _NOT_COPIED:
            continue
        if path.is_dir():
            shutil.copytree(path, out / path.name)
        elif path.is_file():
            shutil.copyfile(path, out / path.name)
