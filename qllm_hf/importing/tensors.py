"""The tensors of a checkpoint, by name, read from disk when they are asked for."""

from __future__ import annotations

import contextlib
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..checkpoint import Checkpoint


class Tensors:
    """{name: tensor} of all files of a checkpoint; a context manager that closes them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        for path in checkpoint.files:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(file.keys(), file)

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor
