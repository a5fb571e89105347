"""Everything that has to be known of a checkpoint before the first tensor of its imported form is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..checkpoint import ORDER, PACKED, SCALE, ZERO_POINT, Checkpoint, StoredTensor
from ..errors import CheckpointError
from ..packed import packed_shapes
from ..packing import pack
from ..plan import Entry, make_plan
from ..quantizer import guard_name
from ..safetensors_stream import DTYPES, Item
from .config import Activations, every_weight, quantized_inputs, result_config
from .layers import Layer, find_layers
from .members import Names, Target
from .peers import Peer
from .tensors import Tensors


class Job:
    """Everything that has to be known of a checkpoint before its first tensor is written."""

    def __init__(
        self, checkpoint: Checkpoint, peer: Peer, model: PreTrainedModel, tensors: Tensors, activations: Activations
    ) -> None:
        self.tensors, self.notes = tensors, list[str]()
        known: dict[str, Any] = dict(model.state_dict())
        names = Names(model)
        entries = {entry.name: entry for entry in every_weight(model).entries}
        stored = find_layers(checkpoint, peer)
        self.targets: dict[str, Target] = {}
        self.layers: dict[str, Layer] = {}
        self.orders: dict[str, Tensor] = {}
        for target in names.targets(stored, known):
            entry = _entry_of(target, entries)
            self.targets[target.weight] = target
            for name in target.members:
                self.layers[name] = stored[name].measured(entry.shape[-1], peer.stated(name))
            _check_members(target, entry, self.layers)
            order = _order(target, entry, self.layers, tensors)
            if order is not None:
                self.orders[target.weight] = order
        specs = {weight: self.layers[target.members[0]].spec for weight, target in self.targets.items()}
        self.symmetric = all(layer.has_constant_zero_points(tensors) for layer in self.layers.values())
        inputs = {
            weight: quantized_inputs(peer, target.members, activations) for weight, target in self.targets.items()
        }
        self.config = result_config(model, peer, specs, inputs, self.symmetric, self.orders)
        self.plan = make_plan(model, self.config, check_patterns=False)
        if self.orders:
            self.notes.append(
                f"{len(self.orders)} layers are in act order: their input is put in a stored order before each "
                "product, and tensor parallelism can only cut their output channels."
            )
        self.dtype = self._dtype(checkpoint.config, model)
        self.copied = self._copied(checkpoint, names, known)
        self.stored_names = {weight: self._stored_name(target, names, known) for weight, target in self.targets.items()}

    def items(self) -> Iterator[Item]:
        """All tensors of the result, in the order they are written."""
        guard = guard_name(self.plan)
        yield Item(self.stored_names.get(guard, guard), torch.uint8, (1,), lambda: torch.zeros(1, dtype=torch.uint8))
        for name, stored in self.copied.items():
            yield Item(name, DTYPES[stored.dtype], stored.shape, partial(self.tensors.__getitem__, name))
        for entry in self.plan.quantized():
            yield from self._packed_items(entry)

    def _packed_items(self, entry: Entry) -> Iterator[Item]:
        assert entry.weight is not None
        target, name, spec = self.targets[entry.name], self.stored_names[entry.name], entry.weight
        scale_dtype = self.layers[target.members[0]].scale_dtype
        shapes, order = packed_shapes(entry.shape, spec, scale_dtype), self.orders.get(entry.name)

        def made(part: str) -> Callable[[], Tensor]:
            make: Mapping[str, Callable[[Layer], Tensor]] = {
                "words": lambda layer: pack(layer.codes(self.tensors, order), spec.bits),
                "scale": lambda layer: layer.scale(self.tensors),
                "zero_point": lambda layer: layer.zero_points(self.tensors),
            }
            return lambda: _merged(target, lambda member: make[part](self.layers[member]))

        for part, suffix in {"words": PACKED, "scale": SCALE, "zero_point": ZERO_POINT}.items():
            if part in shapes:
                shape, dtype = shapes[part]
                yield Item(name + suffix, dtype, shape, made(part))
        if order is not None:
            yield Item(name.removesuffix(".weight") + ORDER, torch.int32, tuple(order.shape), lambda: order)

    def _dtype(self, config: Mapping[str, Any], model: PreTrainedModel) -> torch.dtype:
        """The narrowest dtype in which the model's floats and all scales are exact."""
        named = config.get("dtype") or config.get("torch_dtype")
        own = getattr(torch, str(named), None) if named else model.dtype
        assert isinstance(own, torch.dtype)
        found = own
        for layer in self.layers.values():
            found = torch.promote_types(found, layer.scale_dtype)
        if found != own:
            scales = sorted({_name(layer.scale_dtype) for layer in self.layers.values()})
            self.notes.append(
                f"scales are stored in {', '.join(scales)} and the model is {_name(own)}: its dtype is now "
                f"{_name(found)}, in which both are exact. Load it with another dtype to trade exactness for memory; "
                "the files keep what they hold."
            )
        return found

    def _copied(self, checkpoint: Checkpoint, names: Names, known: Mapping[str, Any]) -> dict[str, StoredTensor]:
        """The tensors that go on as they are."""
        parts = {full for layer in self.layers.values() for full in layer.names}
        copied = {}
        for name, stored in checkpoint.tensors.items():
            if name in parts:
                continue
            layer = self.layers.get(name.rpartition(".")[0])
            if layer is not None and names.of(name, known)[0] not in known:
                layer.check_needless(name, self.tensors)
                continue
            if stored.dtype not in DTYPES or stored.dtype.startswith("F8"):
                raise CheckpointError(f"{name} is stored as {stored.dtype}, which is no float that can be copied.")
            last = name.rpartition(".")[2]
            if last in _PARTS_OF_LAYERS and names.of(name, known)[0] not in known:
                raise CheckpointError(
                    f"{name} belongs to a module that is no linear layer of this model; what it does to the result "
                    "cannot be said in our format. Quantize the float model."
                )
            copied[name] = stored
        return copied

    def _stored_name(self, target: Target, names: Names, known: Mapping[str, Any]) -> str:
        """The name of a weight in our files: as in the files it came from, or else as in the model."""
        own = target.members[0] + ".weight"
        packed = {weight + PACKED: True for weight in self.targets}
        orders = {weight.removesuffix(".weight") + ORDER: True for weight in self.orders}
        for name in (own, target.weight):
            order = names.of(name.removesuffix(".weight") + ORDER, orders)[0]
            finds_order = target.weight not in self.orders or order == target.weight.removesuffix(".weight") + ORDER
            # with a pattern it would be merged with others; before 5.21 patterns did not ask where a name ends
            if names.of(name + PACKED, packed) == (target.weight + PACKED, None) and finds_order:
                return name
        raise CheckpointError(f"{target.weight}: no name in the files leads transformers to it once it is packed.")


_PARTS_OF_LAYERS = ("scales", "qweight", "qzeros", "g_idx", "weight_scale", "weight_packed", "weight_zero_point")


def _entry_of(target: Target, entries: Mapping[str, Entry]) -> Entry:
    entry = entries.get(target.weight)
    if entry is None:
        raise CheckpointError(
            f"{target.members[0]} is quantized in the files, and {target.weight} is no weight of a linear layer, which "
            "alone can be packed. Quantize the float model."
        )
    return entry


def _check_members(target: Target, entry: Entry, layers: Mapping[str, Layer]) -> None:
    """The layers that make up one weight are alike, and together have its rows."""
    first = layers[target.members[0]]
    for name in target.members:
        if (layers[name].spec, layers[name].scale_dtype) != (first.spec, first.scale_dtype):
            raise CheckpointError(
                f"{name} is {layers[name].spec} and {first.name} is {first.spec}: both are parts of {target.weight}, "
                "which can only be quantized in one way."
            )
    rows = sum(layers[column[0]].form.rows for column in target.columns)
    stack = (len(target.columns[0]),) if target.is_stack else ()
    if (*stack, rows, entry.shape[-1]) != entry.shape:
        raise CheckpointError(
            f"{target.weight} has the shape {list(entry.shape)} in this model, and its layers in the files make "
            f"{[*stack, rows, entry.shape[-1]]}: {target.members[0]} is of another model, or cut."
        )
    if first.form.groups == 0 and len(target.members) > 1:
        raise CheckpointError(f"{target.weight} is made of layers with one scale each, and has room for one in all.")


def _order(target: Target, entry: Entry, layers: Mapping[str, Layer], tensors: Tensors) -> Tensor | None:
    """The order of a weight's columns. Raises CheckpointError if its layers do not share one, or it can have none."""
    orders = [layers[name].order(tensors) for name in target.members]
    if len({None if order is None else tuple(order.tolist()) for order in orders}) > 1:
        raise CheckpointError(
            f"{target.weight} is made of {len(target.members)} layers, {target.members[0]} among them, whose groups "
            "are of different columns (act order, desc_act=True): its rows can only have one order. Take a checkpoint "
            "with desc_act=False, or one with one group per channel."
        )
    if orders[0] is not None and entry.kind == "experts":
        raise CheckpointError(
            f"{target.weight}: its groups are not runs of neighbouring columns (act order, desc_act=True), which rows "
            "of experts cannot say. Take a checkpoint with desc_act=False, or one with one group per channel."
        )
    return orders[0]


def _merged(target: Target, make: Callable[[str], Tensor]) -> Tensor:
    columns = []
    for column in target.columns:
        made = [make(name) for name in column]
        columns.append(torch.stack(made) if target.is_stack else torch.cat(made))
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1 if target.is_stack else 0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
