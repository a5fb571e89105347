"""The linear operation on this processor: the C++ kernels of `qllm_kernels`, on packed weights as they are stored.

The products are of integers. Activations in floating point become fixed-point numbers first, per block of 128: 16 bits
for 16-bit types and 24 for float32, which loses less than the rounding of the result does. Everything else is exact
but for the sum over groups, in float32.

The library is called directly, past torch's dispatcher, which would cost more than a small product. So whatever lives
in the dispatcher (gradients, traces, subclasses of Tensor, modes) takes plain torch instead, except a graph that is
being compiled: that gets one opaque operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from qllm_kernels import cpu as kernels

from ..errors import ConfigError
from ..native import TYPES
from ..ordinary import is_plain
from ..packed import PackedTensor
from ..packing import WORD
from ..scheme import PER_ROW, Spec
from . import graph, reference
from .graph import Pair

if TYPE_CHECKING:
    from .registry import Request

_NAMES = ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES)


def _open() -> tuple[Callable[[bytes], int], str | None, str | None]:
    """The library's function, why there is no library, and what is wrong with QLLM_HF_CPU."""
    try:
        missing = kernels.missing()
        return (_no_library if missing else kernels.library().linear_call), missing, None
    except kernels.KernelError as error:
        return _no_library, None, str(error)


def _no_library(_: bytes) -> int:
    raise kernels.KernelError("there is no library of CPU kernels: ask `refuses` first")


# Here and not on first use, which may be inside a graph that is being compiled.
_LINEAR_CALL, _MISSING, _MISUSED = _open()

NAME = "cpu"


def refuses(request: Request) -> str | None:
    """Why the kernels cannot take a request, or None.

    Raises:
        ConfigError: QLLM_HF_CPU names no level of this build and processor.
    """
    if request.device != "cpu":
        return "is for tensors on the CPU"
    if _MISUSED is not None:
        raise ConfigError(_MISUSED)
    if _MISSING is not None:
        return _MISSING
    weight, activation = request.weight, request.activation
    for name, dtype in (("activations", request.dtype), ("scales", request.scale_dtype or request.dtype)):
        if dtype not in TYPES:
            return f"{name} in {str(dtype).removeprefix('torch.')}: takes {_NAMES}"
    if weight.paper_exact or (activation is not None and activation.paper_exact):
        return "paper_exact asks for the published arithmetic, which torch has"
    if weight.group_size > 0 and weight.group_size % 32:
        return f"groups of {weight.group_size}: takes multiples of 32, a row, or a matrix"
    if activation is not None and activation.group_size != PER_ROW:
        return "activations in groups: takes one group per token"
    return None


def linear(x: Tensor, weight: PackedTensor, bias: Tensor | None, activation: Spec | None) -> Tensor:
    """x [..., I] times the packed weight [O, I], plus bias [O]: [..., O] in the dtype of x."""
    return linear_many(x, [(weight, bias)], activation)[0]


def linear_many(x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> list[Tensor]:
    """As `linear` for several weights and their biases: x is made ready once, and threads are called once."""
    if torch.compiler.is_compiling():
        if not (torch.is_grad_enabled() and x.requires_grad):
            return graph.products(NAME, x, pairs, activation)
    elif is_plain(x):
        return _products(x, pairs, activation)
    return [reference.linear(x, weight, bias, activation) for weight, bias in pairs]


def _products(x: Tensor, pairs: Sequence[Pair], activation: Spec | None) -> list[Tensor]:
    prepared = prepare(x.dtype, pairs, activation)
    results = None if prepared is None else multiply(x, prepared)
    return results or [reference.linear(x, weight, bias, activation) for weight, bias in pairs]


graph.BODIES[NAME] = _products


class Prepared(NamedTuple):
    """Matrices and biases as the library reads them, for vectors of one dtype.

    Attributes:
        rows: of each matrix.
        numbers: type of the vectors, bits of activations, whether symmetric, 0, count of matrices.
        head: packs the first part of a call.
        matrices: the bytes of all matrices and the addresses of their biases.
        copies: tensors that were made on the way. One is out of date when its original changes.
    """

    dtype: torch.dtype
    length: int
    rows: tuple[int, ...]
    numbers: tuple[int, int, bool, int, int]
    head: Callable[..., bytes]
    matrices: bytes
    copies: tuple[Tensor, ...]


def prepare(dtype: torch.dtype, pairs: Sequence[Pair], activation: Spec | None) -> Prepared | None:
    """Weights and biases for vectors of a dtype; None where they are not plain tensors on this processor."""
    matrices, biases, copies = [], [], []
    lengths = {weight.length for weight, _ in pairs}
    for weight, bias in pairs:
        parts = [part for part in (weight.words, weight.scale, weight.zero_point, bias) if part is not None]
        if not all(type(part) in (Tensor, nn.Parameter) and part.is_cpu for part in parts):
            return None
        if weight.words.dim() != 2 or weight.words.dtype != WORD or weight.scale.dtype not in TYPES:
            return None
        for part in parts[:-1] if bias is not None else parts:
            if part.stride(-1) != 1 and part.shape[-1] > 1:
                return None
        if bias is not None:
            fitting = bias.to(dtype).contiguous()
            if fitting.data_ptr() != bias.data_ptr():
                copies.append(fitting)
            bias = fitting
        matrices.append(_matrix(weight))
        biases.append(0 if bias is None else bias.data_ptr())
    if len(lengths) != 1 or not all(lengths):
        return None
    bits, symmetric = (activation.bits, activation.symmetric) if activation is not None else (0, False)
    return Prepared(
        dtype=dtype,
        length=lengths.pop(),
        rows=tuple(weight.words.shape[0] for weight, _ in pairs),
        numbers=(TYPES[dtype], bits, symmetric, 0, len(pairs)),
        head=kernels.vectors_and_results(len(pairs)),
        matrices=b"".join(matrices) + kernels.addresses(biases),
        copies=tuple(copies),
    )


def _matrix(weight: PackedTensor) -> bytes:
    words, scale, zero_point, spec, length = weight
    rows = words.shape[0]
    # one group for a whole matrix: each row reads the same scale
    strides = [part.stride(0) if part.shape[0] > 1 else 0 for part in (scale, zero_point) if part is not None]
    return kernels.matrix(
        words.data_ptr(),
        scale.data_ptr(),
        0 if zero_point is None else zero_point.data_ptr(),
        (rows, length),
        (words.stride(0), strides[0], strides[-1]),
        spec.group_size if spec.group_size > 0 else length,
        spec.bits,
        TYPES[scale.dtype],
    )


def multiply(x: Tensor, prepared: Prepared) -> list[Tensor] | None:
    """x [..., I], plain and of the dtype that was prepared, times each matrix: a list of [..., O].

    None where the rows of x are not as long as those of the matrices; torch has the message for it.
    """
    _, length, rows, numbers, head, matrices, _ = prepared
    shape = list(x.shape)
    if not shape or shape[-1] != length:
        return None
    stride = length
    if not x.is_contiguous():
        x = x.reshape(-1, length)
        if x.stride(1) != 1:
            x = x.contiguous()
        stride = x.stride(0)
    results, places = [], []
    for shape[-1] in rows:
        y = x.new_empty(shape)
        results.append(y)
        places.append(y.data_ptr())
    tokens = x.numel() // length
    call = head(x.data_ptr(), tokens, stride, *numbers, torch.get_num_threads(), *places) + matrices
    failure = _LINEAR_CALL(call)
    if failure:
        kernels.check(failure)
    return results


def read_bandwidth(size: int = 2**30, repeats: int = 5) -> float:
    """Bytes per second that torch's threads read together from `size` bytes: the best of some runs.

    Raises:
        KernelError: there is no library.
    """
    data = torch.ones(size // 8, dtype=torch.int64)
    opened = kernels.library()
    return max(opened.read_bandwidth(data.data_ptr(), size, torch.get_num_threads()) for _ in range(repeats))
