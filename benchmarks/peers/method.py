"""Method: one way to multiply with a weight of few bits, as a value that a benchmark can verify and time."""

from __future__ import annotations

import copy
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qllm_hf


class NotHere(Exception):
    """A library is not installed, or cannot do what is asked; the text says which."""


def as_it_is(x: Tensor) -> Any:
    """The activations of a torch model: x [M, K] in bfloat16 itself."""
    return x


def bytes_of(state: Any) -> int:
    """Bytes of all tensors that a product reads: codes, scales, zero points, each storage once."""
    if hasattr(state, "nbytes") and not isinstance(state, Tensor):
        return int(state.nbytes())
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in _leaves(state, set())}.values())


@dataclass(frozen=True)
class Method:
    """A product of tokens with a weight.

    Attributes:
        name: unique, and what a table shows.
        library, module, package: its name, what is imported, what is installed.
        bits, group_size: of the weight; -1 is a group per output channel.
        activation_bits: 16 where activations stay in floating point.
        prepare: from a float32 weight [N, K], what the product reads.
        run: (what `prepare` made, what `inputs` made) -> y [M, N].
        meant: the weight [N, K] that its codes mean, where the library says it.
        inputs: from x [M, K] in bfloat16, the activations as the library's own layers hand them on; not timed.
        rounded: what x means after the method's own rounding of activations, where it is known.
        clone: the same at other addresses, without what only `meant` needs.
        scaled: whether y is the product; the bare product of integers leaves the scales out.
    """

    name: str
    library: str
    module: str
    package: str
    bits: int
    group_size: int
    activation_bits: int
    prepare: Callable[[Tensor], Any]
    run: Callable[[Any, Any], Tensor]
    meant: Callable[[Any], Tensor] | None = None
    inputs: Callable[[Tensor], Any] = as_it_is
    rounded: Callable[[Tensor], Tensor] | None = None
    clone: Callable[[Any], Any] = copy.deepcopy
    scaled: bool = True

    def version(self) -> str:
        """Of the installed package; empty where there is none."""
        return version_of(self.package)


def version_of(package: str) -> str:
    """Of an installed package, or empty. Ours may lie on the path uninstalled."""
    if package == "qllm-hf":
        return qllm_hf.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def need(module: str) -> Any:
    """The imported module.

    Raises:
        NotHere: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotHere(f"not installed: {error}") from error


def check_groups(weight: Tensor, group_size: int) -> None:
    """Where a library would fail in the middle, or leave the weight in floating point without a word.

    Raises:
        NotHere: the group size does not divide the row.
    """
    if group_size > 0 and weight.shape[1] % group_size:
        raise NotHere(f"refuses: {weight.shape[1]} inputs are no multiple of {group_size}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the many lines that some libraries print."""
    logging.disable(logging.WARNING)
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def clone_tensor(tensor: Tensor) -> Tensor:
    """The same tensor at other addresses, also where a library made a class of its own that cannot be copied."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.detach().clone()
    names, context = tensor.__tensor_flatten__()
    inner = {name: clone_tensor(getattr(tensor, name)) for name in names}
    made: Tensor = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    return made


def _leaves(found: Any, seen: set[int]) -> Iterator[Tensor]:
    """Plain tensors inside modules, containers, tensor subclasses and the libraries' own objects."""
    if id(found) in seen or found is None or isinstance(found, (str, bytes, int, float, torch.dtype, torch.device)):
        return
    seen.add(id(found))
    if isinstance(found, Tensor):
        if hasattr(found, "__tensor_flatten__"):
            for name in found.__tensor_flatten__()[0]:
                yield from _leaves(getattr(found, name), seen)
            return
        yield found
    children = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else ()
    for child in (*children, *getattr(found, "__dict__", {}).values()):
        yield from _leaves(child, seen)
