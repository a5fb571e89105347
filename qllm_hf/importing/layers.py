"""The quantized layers of a checkpoint of another library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint import Checkpoint, StoredTensor
from ..errors import CheckpointError
from ..input_order import sorted_by_group
from ..safetensors_stream import DTYPES
from ..scheme import Spec
from .layouts import Form, Layout, Stated, spec_of
from .peers import Peer
from .tensors import Tensors

FLOATS = ("F16", "BF16", "F32")
# What other libraries keep beside a layer to quantize its input or output with: not a part of its weight.
BESIDE = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


@dataclass(frozen=True)
class Stored:
    """A quantized layer as the file headers describe it."""

    name: str
    layout: Layout
    shapes: Mapping[str, StoredTensor]

    def measured(self, length: int, stated: Stated) -> Layer:
        """The same with its bits, groups and rows, for rows of `length`.

        Raises:
            CheckpointError: its tensors do not fit together, or the config.
        """
        with _naming(self.name):
            form = self.layout.measure(self.shapes, length, stated)
            return Layer(self.name, self.layout, self.shapes, length, form, spec_of(form, length, stated))


@dataclass(frozen=True)
class Layer:
    """A quantized layer whose form is known.

    Attributes:
        name: of the module in the files.
        length: I, the length of its rows.
        form: bits, rows, groups as the shapes of its tensors say.
        spec: bits and group size.
    """

    name: str
    layout: Layout
    shapes: Mapping[str, StoredTensor]
    length: int
    form: Form
    spec: Spec

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of its tensors."""
        return tuple(f"{self.name}.{part}" for part in self.shapes)

    @property
    def scale_dtype(self) -> torch.dtype:
        """The dtype of its scales."""
        return DTYPES[self.shapes[self.layout.scale_part].dtype]

    def codes(self, tensors: Tensors, order: Tensor | None = None) -> Tensor:
        """uint8 [O, I], its columns in `order` if one is given.

        Raises:
            CheckpointError: it holds no integers of its bits.
        """
        with _naming(self.name):
            codes = self.layout.codes(self._parts(tensors), self.form, self.length)
        return codes.contiguous() if order is None else codes.index_select(-1, order)

    def scale(self, tensors: Tensors) -> Tensor:
        """[O, G] as stored. Raises CheckpointError if one is not finite."""
        scale = self.layout.scale(self._parts(tensors)).contiguous()
        if not bool(torch.isfinite(scale).all()):
            raise CheckpointError(f"{self.name}: its scales hold NaN or infinite values. Is the file damaged?")
        return scale

    def zero_points(self, tensors: Tensors) -> Tensor:
        """uint8 [O, G], constant ones too."""
        with _naming(self.name):
            found = self.layout.zero_points(self._parts(tensors), self.form)
        if found is None:
            rows = (1, 1) if self.form.groups == 0 else (self.form.rows, self.form.groups)
            return torch.full(rows, 2 ** (self.spec.bits - 1), dtype=torch.uint8)
        return found.contiguous()

    def has_constant_zero_points(self, tensors: Tensors) -> bool:
        """Whether all are 2^(bits-1), so that none has to be stored."""
        with _naming(self.name):
            found = self.layout.zero_points(self._parts(tensors), self.form)
        return found is None or bool((found == 2 ** (self.spec.bits - 1)).all())

    def check_needless(self, name: str, tensors: Tensors) -> None:
        """Raises CheckpointError if a tensor beside a layer, which the model has no place for, means something."""
        last = name.rpartition(".")[2]
        if last in BESIDE or (last == "bias" and not bool(tensors[name].any())):
            return
        raise CheckpointError(f"{name} belongs to a quantized layer, and what it means is not known.")

    def _parts(self, tensors: Tensors) -> dict[str, Tensor]:
        return {part: tensors[f"{self.name}.{part}"] for part in self.shapes}

    def order(self, tensors: Tensors) -> Tensor | None:
        """int32 [I]: the order of its columns in which groups are runs of neighbours; None where they are (act order,
        desc_act=True, gives them to columns in any order).

        Raises:
            CheckpointError: its groups have not all the same number of columns.
        """
        part = next((part for part in ("g_idx", "weight_g_idx") if part in self.shapes), None)
        if part is None or self.form.groups <= 1:
            return None
        groups = tensors[f"{self.name}.{part}"]
        if part == "weight_g_idx" and bool((groups == -1).all()):  # as compressed-tensors makes it, and never filled
            return None
        with _naming(f"{self.name}.{part}"):
            return sorted_by_group(groups, self.spec.group_size)


def find_layers(checkpoint: Checkpoint, peer: Peer) -> dict[str, Stored]:
    """{name of a module in the files: its quantized layer}, of all that the files hold.

    Raises:
        CheckpointError: there are none, or one lacks a tensor.
    """
    found: dict[str, Stored] = {}
    for layout in peer.layouts:
        marker, dtype = layout.marker
        for full, stored in checkpoint.tensors.items():
            name, _, part = full.rpartition(".")
            if part != marker or stored.dtype != dtype:
                continue
            shapes = {p: checkpoint.tensors[f"{name}.{p}"] for p in layout.parts if f"{name}.{p}" in checkpoint.tensors}
            missing = [f"{name}.{part}" for part in layout.needs if part not in shapes]
            if missing:
                raise CheckpointError(f"{full} has no {', '.join(missing)} beside it. Copy the checkpoint again.")
            scale = shapes[layout.scale_part]
            if scale.dtype not in FLOATS:
                raise CheckpointError(
                    f"{name}.{layout.scale_part} is stored as {scale.dtype}: known are {', '.join(FLOATS)}."
                )
            found[name] = Stored(name, layout, shapes)
    if not found:
        kinds = sorted({tensor.dtype for tensor in checkpoint.tensors.values()})
        raise CheckpointError(
            f"{str(checkpoint.folder)!r} holds no quantized layer of {peer.method} with integers "
            f"({' or '.join(layout.marker[0] for layout in peer.layouts)}); its tensors are {', '.join(kinds)}."
        )
    return found


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts the name of a layer before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{name}: {str(error).rstrip('.')}.") from None
