"""How one quantized linear layer is stored by other libraries: the tensors it is made of, and what they mean.

Bits, shape and number of groups are taken from the shapes of the tensors, which cannot lie, and not from a config whose
patterns each reader understands a little differently. What the shapes leave open comes from `Stated`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint import StoredTensor
from ..errors import CheckpointError
from ..formats import awq, gptq
from ..formats.bit_stream import stream_words, unpack_stream
from ..scheme import ALLOWED_BITS, PER_ROW, PER_TENSOR, Spec

Shapes = Mapping[str, StoredTensor]
"""Part of a layer, such as "qweight" -> what the file headers say of it."""


class Stated(NamedTuple):
    """What a checkpoint's config says of one layer: bits, or None, and the group sizes that occur."""

    bits: int | None
    group_sizes: tuple[int, ...]


class Form(NamedTuple):
    """What the shapes of a layer's tensors say: bits, rows O, groups of a row (0: one group for the whole matrix)."""

    bits: int
    rows: int
    groups: int


class Weights(NamedTuple):
    """A layer's weight [O, I] as integers.

    Attributes:
        codes: uint8 [O, I].
        scale: float [O, G].
        zero_point: uint8 [O, G], or None where all are 2^(bits-1).
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None


@dataclass(frozen=True)
class Layout:
    """One way to store a quantized linear layer.

    Attributes:
        marker: the part that tells that a layer is stored in this way, and its dtype in the words of safetensors.
        needs, may_have: its other parts.
        measure: (shapes, length I of a row, what the config states) -> form. Raises ValueError with the reason.
        zero_points: (tensors, form) -> uint8 [O, G]; of constant ones None.
        codes: (tensors, form, I) -> uint8 [O, I].
        scale: the tensor of scales as the file has it -> [O, G].
    """

    marker: tuple[str, str]
    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    measure: Callable[[Shapes, int, Stated], Form]
    zero_points: Callable[[Mapping[str, Tensor], Form], Tensor | None]
    codes: Callable[[Mapping[str, Tensor], Form, int], Tensor]
    scale: Callable[[Mapping[str, Tensor]], Tensor]

    @property
    def scale_part(self) -> str:
        """The part that holds the scales."""
        return next(part for part in self.needs if part in ("scales", "weight_scale"))

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts that a layer may consist of."""
        return (self.marker[0], *self.needs, *self.may_have)


def spec_of(form: Form, length: int, stated: Stated) -> Spec:
    """Bits and group size of a layer of rows of `length`; the group size is -1 or 0 where only that is possible.

    Raises:
        ValueError: no group size makes that many groups, or several do and the config does not say which.
    """
    if form.groups == 0:
        return Spec(form.bits, PER_TENSOR)
    fitting = [size for size in stated.group_sizes if size > 0 and -(-length // size) == form.groups]
    even = length // form.groups if length % form.groups == 0 else None
    if even in fitting:
        fitting = [even] if even is not None else fitting
    elif form.groups == 1:
        fitting = [PER_ROW]
    elif not fitting and even is not None:
        fitting = [even]
    if len(set(fitting)) != 1:
        raise ValueError(
            f"{form.groups} groups in a row of {length} do not go with the group sizes that the config names "
            f"({', '.join(map(str, stated.group_sizes)) or 'none'})"
        )
    return Spec(form.bits, fitting[0])


def _expect(shapes: Shapes, part: str, shape: tuple[int, ...]) -> None:
    if part in shapes and shapes[part].shape != shape:
        raise ValueError(f"{part} has the shape {list(shapes[part].shape)}, and {list(shape)} goes with its others")


def _exact(numerator: int, denominator: int, allowed: tuple[int, ...], what: str) -> int:
    bits = numerator // denominator if denominator and numerator % denominator == 0 else 0
    if bits not in allowed:
        raise ValueError(f"{what} is no dense stream of {', '.join(map(str, allowed))} bits")
    return bits


def _matrix(shapes: Shapes, part: str) -> tuple[int, int]:
    shape = shapes[part].shape
    if len(shape) != 2:
        raise ValueError(f"{part} has {len(shape)} dimensions where 2 are known")
    return shape[0], shape[1]


def _measure_gptq(shapes: Shapes, length: int, stated: Stated) -> Form:
    words, rows = _matrix(shapes, "qweight")
    bits = _exact(words * 32, length, gptq.BITS, f"qweight of {words} words for rows of {length}")
    groups, _ = _matrix(shapes, "scales")
    _expect(shapes, "scales", (groups, rows))
    _expect(shapes, "qzeros", (groups, stream_words(rows, bits)))
    _expect(shapes, "g_idx", (length,))
    return Form(bits, rows, groups)


def _measure_awq(shapes: Shapes, length: int, stated: Stated) -> Form:
    groups, rows = _matrix(shapes, "scales")
    _, words = _matrix(shapes, "qweight")
    bits = _exact(words * 32, rows, ALLOWED_BITS, f"qweight of {words} words for {rows} output channels")
    _expect(shapes, "qweight", (length, words))
    _expect(shapes, "qzeros", (groups, words))
    return Form(bits, rows, groups)


def _measure_packed(shapes: Shapes, length: int, stated: Stated) -> Form:
    rows, words = _matrix(shapes, "weight_packed")
    fitting = [bits for bits in ALLOWED_BITS if stream_words(length, bits) == words]
    bits = stated.bits if stated.bits in fitting else fitting[0] if len(fitting) == 1 and stated.bits is None else None
    if bits is None:
        bits_text = stated.bits or "2 to 8"
        said = f"weight_packed of {words} words for rows of {length} is no dense stream of {bits_text} bits"
        if stated.bits is not None and words == -(-length // (32 // stated.bits)):
            said += ": compressed-tensors before 0.18 left bits of each word empty. Save it again with a later one"
        raise ValueError(said)
    groups = _groups_of_scale(shapes, rows)
    zero_points = (stream_words(rows, bits), groups) if groups else shapes["weight_scale"].shape
    _expect(shapes, "weight_zero_point", zero_points)
    _expect(shapes, "weight_g_idx", (length,))
    return Form(bits, rows, groups)


def _measure_integer(shapes: Shapes, length: int, stated: Stated) -> Form:
    rows, _ = _matrix(shapes, "weight")
    _expect(shapes, "weight", (rows, length))
    if stated.bits not in ALLOWED_BITS:
        raise ValueError("weight holds integers of one byte, and the config does not say how many of its bits count")
    groups = _groups_of_scale(shapes, rows)
    _expect(shapes, "weight_zero_point", shapes["weight_scale"].shape)
    _expect(shapes, "weight_g_idx", (length,))
    return Form(stated.bits, rows, groups)


def _groups_of_scale(shapes: Shapes, rows: int) -> int:
    shape = shapes["weight_scale"].shape
    if shape in ((), (1,), (1, 1)) and rows != 1:
        return 0
    if len(shape) != 2 or shape[0] != rows:
        raise ValueError(f"weight_scale has the shape {list(shape)}: known are [{rows}, groups] and [1]")
    return shape[1]


def _packed_zero_points(tensors: Mapping[str, Tensor], form: Form) -> Tensor | None:
    stored = tensors.get("weight_zero_point")
    if stored is None:
        return None
    if form.groups and stored.dtype == torch.int32:
        return unpack_stream(stored.t(), form.bits, form.rows).t()
    return _unsigned(stored, form)


def _integer_zero_points(tensors: Mapping[str, Tensor], form: Form) -> Tensor | None:
    stored = tensors.get("weight_zero_point")
    return None if stored is None else _unsigned(stored, form)


def _unsigned(signed: Tensor, form: Form) -> Tensor:
    """Signed integers around 0 as codes around 2^(bits-1). Raises CheckpointError if they take more bits."""
    codes = signed.to(torch.int16) + 2 ** (form.bits - 1)
    if signed.is_floating_point() or bool((codes < 0).any()) or bool((codes >= 2**form.bits).any()):
        raise CheckpointError(f"holds {signed.dtype} numbers that are no integers of {form.bits} bits")
    unsigned: Tensor = codes.to(torch.uint8)
    return unsigned if unsigned.dim() == 2 else unsigned.reshape(1, 1)


def _ct_scale(tensors: Mapping[str, Tensor]) -> Tensor:
    scale = tensors["weight_scale"]
    return scale if scale.dim() == 2 else scale.reshape(1, 1)


def gptq_layout(*, less_one: bool, trusts_borrow: bool) -> Layout:
    """Of GPTQ files; `less_one` in the first format, `trusts_borrow` if the program that wrote them is known to have
    subtracted 1 from whole words (`qllm_hf.formats.gptq`)."""

    def zero_points(tensors: Mapping[str, Tensor], form: Form) -> Tensor:
        qzeros = tensors["qzeros"]
        if less_one and not trusts_borrow and gptq.has_borrow(qzeros, form.bits, form.rows):
            raise CheckpointError(
                "holds zero points of -1, which the first GPTQ format cannot store: what stands beside them was lost "
                f"or not, and readers disagree. They mean 0, {2**form.bits} or damage; save the model again in the "
                "format gptq_v2"
            )
        return gptq.unpack_zero_points(qzeros, form.bits, form.rows, less_one=less_one)

    return Layout(
        marker=("qweight", "I32"),
        needs=("qzeros", "scales"),
        may_have=("g_idx",),
        measure=_measure_gptq,
        zero_points=zero_points,
        codes=lambda tensors, form, length: gptq.unpack_codes(tensors["qweight"], form.bits, length),
        scale=lambda tensors: tensors["scales"].t(),
    )


AWQ_GEMM = Layout(
    marker=("qweight", "I32"),
    needs=("qzeros", "scales"),
    may_have=(),
    measure=_measure_awq,
    zero_points=lambda tensors, form: awq.unpack_columns(tensors["qzeros"], form.bits, form.rows),
    codes=lambda tensors, form, length: awq.unpack_columns(tensors["qweight"], form.bits, form.rows),
    scale=lambda tensors: tensors["scales"].t(),
)
PACK_QUANTIZED = Layout(
    marker=("weight_packed", "I32"),
    needs=("weight_scale",),
    may_have=("weight_zero_point", "weight_shape", "weight_g_idx"),
    measure=_measure_packed,
    zero_points=_packed_zero_points,
    codes=lambda tensors, form, length: unpack_stream(tensors["weight_packed"], form.bits, length),
    scale=_ct_scale,
)
INT_QUANTIZED = Layout(
    marker=("weight", "I8"),
    needs=("weight_scale",),
    may_have=("weight_zero_point", "weight_g_idx"),
    measure=_measure_integer,
    zero_points=_integer_zero_points,
    codes=lambda tensors, form, length: _unsigned(tensors["weight"], form),
    scale=_ct_scale,
)
