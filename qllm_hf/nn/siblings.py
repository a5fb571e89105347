"""Layers that are given the same input: their products are computed together when the first of them is called.

A small model spends as much time on calling a kernel as in it. Queries, keys and values of an attention, or gate and
up projection of an MLP, need one call: the input is made ready once, and threads are woken once. The first layer
computes for all and keeps the others' results, which each of them takes if it is called with the very same tensor,
unchanged. Nothing depends on how the model around them is written; where it does not call all of them, they
stop working together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..ops import Shortcut, linear_many
from .parameters import local

if TYPE_CHECKING:
    from .linear import PackedLinear


class Siblings:
    """Some packed layers that share their input, the one that is called first in front.

    They take part if they have as many in_features, quantize activations alike, and none scales or reorders its input.
    """

    def __init__(self, layers: Sequence[PackedLinear]) -> None:
        self.layers = tuple(layers)
        kinds = {(layer.in_features, layer.activation_spec) for layer in layers}
        self.apart = len(kinds) > 1 or any(
            layer.input_scale is not None or layer.input_order is not None for layer in layers
        )
        self._shortcut: Shortcut | None = None
        # the input, its version, and the results that were not taken yet: one object, so that threads cannot mix two
        self._kept: tuple[Tensor, int, dict[int, Tensor]] | None = None

    def product(self, layer: PackedLinear, x: Tensor) -> Tensor | None:
        """What `layer` makes of x, for which `is_ordinary` holds; None where it has to compute it alone."""
        kept = self._kept
        if kept is not None and kept[0] is x and not x.is_inference() and kept[1] == x._version:
            result = kept[2].pop(id(layer), None)
            if not kept[2]:
                self._kept = None
            return result
        if self.apart or layer is not self.layers[0] or x.is_inference():  # whose versions nobody counts
            return None
        if kept is not None:  # some results were never taken
            self.apart, self._kept = True, None
            return None
        results = self._products(x)
        if results is None:
            return None
        self._kept = x, x._version, {id(each): y for each, y in zip(self.layers[1:], results[1:], strict=True)}
        return results[0]

    def _products(self, x: Tensor) -> list[Tensor] | None:
        if self._shortcut is not None:
            results = self._shortcut(x, [tensor for layer in self.layers for tensor in layer.stored()])
            if results is not None:
                return results
        activation = self.layers[0].activation_spec
        pairs = [(layer.packed("weight"), local(layer.bias)) for layer in self.layers]
        if not x.is_cpu:
            return linear_many(x, pairs, activation)
        self._shortcut = Shortcut.of(x, pairs, activation)
        if self._shortcut is None:
            return None
        return self._shortcut(x, [tensor for layer in self.layers for tensor in layer.stored()])
