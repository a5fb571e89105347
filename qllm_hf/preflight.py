"""What config.json asks for, compared with the files beside it before transformers makes anything of it.

transformers builds what a config describes first, and finds out afterwards that the tensors are others. A config that
asks for a billion layers would never come that far.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from .checkpoint import PACKED, SCALE, ZERO_POINT, Checkpoint, read_object, some
from .errors import CheckpointError, QllmError
from .header import read_header
from .shown import short, short_text

TRUST = "Read that code; if you trust it, give --trust-remote-code (in Python: trust_remote_code=True)."
"""What to do about code that comes with a model."""

ROOM = 2**30
"""Bytes that a model may take beside four times its files."""
# numbers that transformers makes as many objects of
_LAYERS = re.compile(r"(num_|n_)?((hidden|encoder|decoder)_)?layers?")
_OTHERS = re.compile(r"(num_|n_|moe_num_)(local_|routed_|shared_)*experts?|num_labels")
_MOST = 2**14
_OURS = (PACKED, SCALE, ZERO_POINT, ".input_scale")
_SIDE_FILES = ("generation_config.json", "adapter_config.json")


def check_config(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> None:
    """Raises CheckpointError if config.json asks for more layers than there are tensors, or for code from elsewhere.

    Code: `attn_implementation` in a config.json may name a repository of kernels on the Hub.
    """
    path = checkpoint.folder / "config.json"
    for name, value in _items(checkpoint.config):
        if type(value) is int:
            for pattern, most in ((_LAYERS, len(checkpoint.tensors)), (_OTHERS, _MOST)):
                if pattern.fullmatch(name) and value > most:
                    raise CheckpointError(
                        f"{path} says {name}={short(value)}, and the files hold {len(checkpoint.tensors)} tensors. "
                        f"At most {most} can be: copy the folder again."
                    )
        elif name.endswith(("attn_implementation", "experts_implementation")) and not trust_remote_code:
            if "/" in str(value):
                raise CheckpointError(f"{path} says {name}={short(value)}: that is code from somewhere else. {TRUST}")
        elif name == "transformers_weights" and value is not None:
            raise CheckpointError(
                f"{path} says transformers_weights={short(value)}: other weights than model.safetensors. "
                "Remove that key, and rename the file that it names."
            )


def check_side_files(folder: Path) -> None:
    """Raises CheckpointError if generation_config.json (which transformers skips silently) or an adapter is damaged."""
    for name in _SIDE_FILES:
        path = folder / name
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, where a file is expected. Copy the checkpoint again.")
    path, adapter = (folder / name for name in _SIDE_FILES)
    if path.is_file():
        values = read_object(path)
        with refusing(f"{path} is no generation config"):
            GenerationConfig.from_dict(values)
    if adapter.is_file():
        read_object(adapter)
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file():
            raise CheckpointError(f"{adapter} has no {weights.name} beside it. Remove it, or copy the adapter again.")
        read_header(weights)


def check_room(model: nn.Module, checkpoint: Checkpoint, packed_elements: int) -> None:
    """Raises CheckpointError if a model on the meta device would take much more memory than its files hold.

    Args:
        packed_elements: of its weights that are packed in the files, and were compared with them.
    """
    tensors = [*model.parameters(), *model.buffers()]
    wanted = sum(tensor.nbytes for tensor in tensors) - packed_elements * _widest(model)
    if wanted > 4 * checkpoint.file_bytes + ROOM:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} describes a model of {wanted} bytes, and the safetensors files have "
            f"{checkpoint.file_bytes}. They do not belong together: copy the folder again."
        )


def check_unexpected(model: str, names: Iterable[str]) -> None:
    """Raises CheckpointError if parts of packed weights were found that no layer takes: the rest would be noise."""
    left = sorted(name for name in names if name.endswith(_OURS))
    if left:
        raise CheckpointError(
            f"{model!r} holds {some(left)}, which the model that config.json describes has no place for. "
            "They do not belong together: copy the whole folder again."
        )


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever a library makes of values that it did not expect becomes a CheckpointError: `what`, and its first line.

    Files may hold any value, so any error may come of them. Missing memory and missing files stay what they are.
    """
    try:
        yield
    except (QllmError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().split("\n")
        raise CheckpointError(
            f"{what}: {type(error).__name__}: {short_text(' '.join(lines[:2]))}. Copy the checkpoint again."
        ) from error


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value, at any depth."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def _widest(model: nn.Module) -> int:
    return max((parameter.element_size() for parameter in model.parameters()), default=0)
