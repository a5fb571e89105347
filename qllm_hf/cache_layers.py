"""Cache layers of transformers, holding packed rows instead of float vectors.

A layer of transformers treats keys and values as opaque rows along the last dimension: it appends,
crops, reorders, rolls and copies them, and never looks inside. So any such layer works on packed rows as
it stands. `PACKED_LAYERS` holds, for each layer class, one whose `update` encodes what comes in and
decodes what goes out; everything between is transformers' own code, and what it stores is packed.

For a layer class that is not known to be so indifferent, `simulated_layer_class` quantizes K and V when
they are written and stores them in floating point: the right numbers, no memory saved.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, StaticLayer

from .attention import KvRows, lazy_pair
from .errors import CacheError
from .kv_rows import KvFormat, RowFormat
from .nn.activation import straight_through
from .row_buffer import RowBuffer, append, compact

# The layers whose code was read and found to treat keys and values as opaque rows. Some exist only in newer releases.
ROW_LAYERS: tuple[type, ...] = tuple(
    getattr(cache_utils, name)
    for name in (
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "DynamicIndexedLayer",
        "StaticLayer",
        "StaticSlidingWindowLayer",
        "StaticIndexedLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
        "LinearAttentionAndStaticFullAttentionLayer",
        "LinearAttentionAndStaticSlidingWindowAttentionLayer",
    )
    if hasattr(cache_utils, name)
)


class QuantizedKvLayer:
    """What packed and simulated layers share: the format of the keys and values they hold."""

    kv_format: KvFormat
    is_packed: bool

    def __reduce__(self) -> Any:
        # the classes are made from those of transformers, so a pickle names the one it was made from
        return _empty_layer, (type(self).__bases__[1], self.is_packed), self.__dict__


class PackedLayer(QuantizedKvLayer):
    """The part of a packed layer that is ours; the other base class is a layer of transformers.

    `keys` and `values` read as float tensors [B, H, T, D], dequantized on demand. Inside the methods that the
    layer inherits they are the packed rows int16 [B, H, T, R].
    """

    is_packed = True
    dtype: torch.dtype
    _inside = False
    _keys: Tensor | None = None
    _values: Tensor | None = None
    _key_rows: RowFormat | None = None
    _value_rows: RowFormat | None = None
    _key_buffer: RowBuffer | None = None
    _value_buffer: RowBuffer | None = None

    def __reduce__(self) -> Any:
        function, arguments, state = super().__reduce__()
        own = {"_keys": compact(self._keys), "_values": compact(self._values)}
        return function, arguments, {**state, **own, "_key_buffer": None, "_value_buffer": None}

    def nbytes(self) -> int:
        """Bytes of packed keys and values. A layer that grows holds room for up to half as many tokens on top."""
        stored = (self._keys, self._values)
        return sum(tensor.numel() * tensor.element_size() for tensor in stored if tensor is not None)

    @property
    def keys(self) -> Tensor | None:
        """Keys [B, H, T, D], dequantized."""
        return self._read(self._keys, self._key_rows)

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self._check_write(value)
        self._keys = value

    @property
    def values(self) -> Tensor | None:
        """Values [B, H, T, D], dequantized."""
        return self._read(self._values, self._value_rows)

    @values.setter
    def values(self, value: Tensor | None) -> None:
        self._check_write(value)
        self._values = value

    def _read(self, rows: Tensor | None, rows_format: RowFormat | None) -> Tensor | None:
        if self._inside or rows is None:
            return rows
        if rows_format is None or rows.dim() != 4:  # initialized, but empty
            return rows.new_empty(0, dtype=rows_format.dtype if rows_format else self.dtype)
        return rows_format.decode(rows)

    def _check_write(self, value: Tensor | None) -> None:
        if not self._inside and value is not None:
            raise CacheError(
                "keys and values of a packed cache layer cannot be assigned from outside. "
                "Use update, crop, reorder_cache, batch_repeat_interleave or batch_select_indices."
            )

    def _formats(self, keys: Tensor, values: Tensor) -> tuple[RowFormat, RowFormat]:
        """The row formats, fixed by the first tokens."""
        if self._key_rows is None or self._value_rows is None:
            self._key_rows, self._value_rows = self.kv_format.keys(keys), self.kv_format.values(values)
        elif keys.dtype != self._key_rows.dtype:
            raise CacheError(
                f"this cache layer holds keys of {self._key_rows.dtype}, the model now writes {keys.dtype}."
            )
        return self._key_rows, self._value_rows

    def _grow(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All rows, the new ones encoded where they stay: what `update` of a DynamicLayer does by copying."""
        key_rows, value_rows = self._formats(keys, values)
        if self._keys is None or self._values is None:
            empty = keys.new_empty(0, dtype=torch.int16)
            self.lazy_initialization(empty, empty)  # type: ignore[attr-defined]
        assert self._keys is not None
        assert self._values is not None
        self._keys, self._key_buffer = append(
            self._keys, (*keys.shape[:3], key_rows.words), self._key_buffer, partial(key_rows.encode_into, keys)
        )
        self._values, self._value_buffer = append(
            self._values,
            (*values.shape[:3], value_rows.words),
            self._value_buffer,
            partial(value_rows.encode_into, values),
        )
        return self._keys, self._values

    def _take_over(self, keys: Tensor | None, values: Tensor | None) -> None:
        """Quantize, once, what a float layer already held."""
        if keys is None or values is None:
            return
        if keys.dim() == 4:
            key_rows, value_rows = self._formats(keys, values)
            self._keys, self._values = key_rows.encode(keys), value_rows.encode(values)
        else:  # initialized, but empty
            self._keys, self._values = keys.new_empty(0, dtype=torch.int16), values.new_empty(0, dtype=torch.int16)


def _on_rows(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of transformers' layer, run with `keys` and `values` meaning the packed rows."""

    @functools.wraps(method)
    def run(self: PackedLayer, *args: Any, **kwargs: Any) -> Any:
        outer, self._inside = self._inside, True
        try:
            return method(self, *args, **kwargs)
        finally:
            self._inside = outer

    return run


def _packed_layer_class(cls: type) -> type:
    """The packed variant of one of ROW_LAYERS."""

    base_initialization = _on_rows(cls.lazy_initialization)  # type: ignore[attr-defined]
    base_update = _on_rows(cls.update)  # type: ignore[attr-defined]
    grows = cls.update is DynamicLayer.update  # type: ignore[attr-defined]
    has_room = cls.update is StaticLayer.update  # type: ignore[attr-defined]

    def lazy_initialization(self: Any, *args: Any, **kwargs: Any) -> None:
        # hybrid layers also come here with the states of their linear attention, as keyword arguments
        if len(args) != 2 or kwargs or args[0].dtype == torch.int16:
            base_initialization(self, *args, **kwargs)
            return
        keys, values = args
        key_rows, value_rows = self._formats(keys, values)
        base_initialization(self, key_rows.encode(keys), value_rows.encode(values))

    def update(self: Any, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        key_rows, value_rows = self._formats(key_states, value_states)
        new_keys, new_values = key_states.detach(), value_states.detach()
        # in place goes by addresses, which a graph being compiled does not have
        if grows and not torch.compiler.is_compiling():
            keys, values = self._grow(new_keys, new_values)
        else:
            rows = key_rows.encode(new_keys), value_rows.encode(new_values)
            keys, values = base_update(self, *rows, *args, **kwargs)
        # behind the tokens that there are is room, which the mask of a static cache hides
        used = self.cumulative_length if has_room else None
        held_keys, held_values = KvRows(keys, key_rows, used), KvRows(values, value_rows, used)
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            if self.is_compileable:
                raise CacheError("no gradient flows through a static quantized cache. Train with use_cache=False.")
            return _with_gradient(held_keys.decode(), key_states), _with_gradient(held_values.decode(), value_states)
        return lazy_pair(held_keys, held_values)

    members: dict[str, Any] = {
        name: _on_rows(getattr(cls, name))
        for name in dir(cls)
        if not name.startswith("__") and inspect.isfunction(getattr(cls, name))
    }
    members |= {"update": update, "lazy_initialization": lazy_initialization, "_layer_type": None}
    members |= {"__module__": __name__, "__doc__": f"{cls.__name__} holding packed rows."}
    return type("Packed" + cls.__name__, (PackedLayer, cls), members)


# Made once, here: inside a compiled graph no class can be made, only looked up.
PACKED_LAYERS: dict[type, type] = {cls: _packed_layer_class(cls) for cls in ROW_LAYERS}


def _with_gradient(full: Tensor, new: Tensor) -> Tensor:
    """The last tokens of `full` pass gradients to `new`, as if they were not rounded."""
    count = new.shape[-2]
    return torch.cat([full[..., :-count, :], straight_through(new, full[..., -count:, :])], -2)


@functools.cache
def simulated_layer_class(cls: type) -> type:
    """The variant of any layer class that quantizes K and V when they are written, and stores floats."""

    def update(self: Any, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = simulate(key_states, value_states, self.kv_format)
        return cls.update(self, keys, values, *args, **kwargs)  # type: ignore[attr-defined]

    members = {
        "update": update,
        "is_packed": False,
        "_layer_type": None,
        "__module__": __name__,
        "__doc__": f"{cls.__name__} whose keys and values are quantized when written, and stored as floats.",
    }
    return type("Simulated" + cls.__name__, (QuantizedKvLayer, cls), members)


def simulate(keys: Tensor, values: Tensor, kv_format: KvFormat) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, T, D] rounded to their grids, in floating point; gradients pass straight through."""
    key_rows, value_rows = kv_format.keys(keys), kv_format.values(values)
    if key_rows.spec is not None:
        keys = straight_through(keys, key_rows.simulate(keys))
    if value_rows.spec is not None:
        values = straight_through(values, value_rows.simulate(values))
    return keys, values


def _empty_layer(cls: type, packs: bool) -> Any:
    """A layer without contents, of the packed or simulated variant of a class."""
    variant = PACKED_LAYERS[cls] if packs else simulated_layer_class(cls)
    return object.__new__(variant)


def quantize_layer(layer: Any, kv_format: KvFormat) -> Any:
    """A layer that does all that `layer` does, on quantized keys and values; the same object where there are none.

    What the layer already holds is quantized once.
    """
    if not isinstance(layer, CacheLayerMixin):  # states of linear attention, placeholders of shared layers
        return layer
    if isinstance(layer, QuantizedKvLayer):
        if layer.kv_format != kv_format:
            raise CacheError(f"a layer of this cache holds {layer.kv_format}, the model quantizes {kv_format}.")
        return layer
    packs = type(layer) in PACKED_LAYERS
    new = _empty_layer(type(layer), packs)
    state = dict(layer.__dict__)
    new.kv_format = kv_format
    if packs:
        keys, values = state.pop("keys", None), state.pop("values", None)
        new.__dict__.update(state)
        new._take_over(keys, values)
    else:
        new.__dict__.update(state)
        keys, values = layer.keys, layer.values
        if isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.dim() == 4:
            new.keys, new.values = simulate(keys, values, kv_format)
    return new
