"""Keys and values as they enter the cache, seen where a cache is handed to attention."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from ..hooks import CACHE_ARGUMENTS

See = Callable[[str, Tensor, Tensor], None]
"""Gets the name of the attention module, keys and values [B, H, T, D]."""


class _Window(Cache):
    """Stands in where there is no cache: shows what passes through, changes and stores nothing."""

    def __init__(self, name: str, see: See) -> None:
        super().__init__(layers=[])
        self._name, self._see = name, see

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The same key_states and value_states."""
        self._see(self._name, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: nothing is stored."""
        return 0


@contextlib.contextmanager
def watching_kv(attentions: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """Within the block, all that attention modules would cache is shown to `see`, in forwards without a cache."""

    def hook_for(name: str, module: nn.Module) -> Any:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        argument = next(each for each in CACHE_ARGUMENTS if each in names)
        position, window = names.index(argument), _Window(name, see)

        def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if kwargs.get("key_value_states") is not None:  # cross-attention: these are the encoder's
                return args, kwargs
            if len(args) > position:
                return (*args[:position], window, *args[position + 1 :]), kwargs
            return args, {**kwargs, argument: window}

        return give

    handles = [
        module.register_forward_pre_hook(hook_for(name, module), with_kwargs=True)
        for name, module in attentions.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
