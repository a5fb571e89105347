"""The decoder blocks of a model, run one at a time by the model itself.

What a block is called with (masks, rotary embeddings, the index of its layer) differs between families and
releases. So the model's own forward makes the call: all other blocks hand their input on without computing
anything, and the one that is wanted gets the hidden states that were kept for it. Nothing is assumed about a family
but that its blocks stand in one ModuleList and take the hidden states first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..plan import Plan


class _Reached(Exception):
    """Ends a forward pass when what was wanted has been computed."""


def block_list(model: nn.Module, plan: Plan) -> str:
    """The name of the ModuleList that holds the decoder blocks: the outermost one with most of the linear weights.

    Raises:
        ModelError: there is none.
    """
    weights: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in weights):
            weights[name] = sum(entry.elements for entry in plan.entries if entry.module.startswith(f"{name}."))
    best = max(weights, key=weights.__getitem__, default="")
    if not weights.get(best):
        raise ModelError(
            f"{type(model).__name__} has no list of decoder blocks, without which it cannot be calibrated block by "
            "block. Use method='rtn'."
        )
    return best


class Blocks:
    """Runs single decoder blocks of a model.

    Attributes:
        name: of the ModuleList.
        modules: the blocks.
        lengths: for each block that ran, the length of the tuple it returns, or None for a tensor.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        modules: Any = model.get_submodule(name)
        self.modules: list[nn.Module] = list(modules)
        self.lengths: list[int | None] = []

    def __len__(self) -> int:
        return len(self.modules)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """The hidden states that the first block gets for ids [B, T], in float32."""
        caught: list[Tensor] = []

        def catch(*args: Any, **kwargs: Any) -> None:
            caught.append(_hidden(args, kwargs))
            raise _Reached

        self._forward(ids, {0: catch})
        return _as_float(caught[0].detach())

    @torch.no_grad()
    def run(self, index: int, ids: Tensor, hidden: Tensor) -> Tensor:
        """What block `index` makes of the hidden states that it gets for ids [B, T]."""
        done: list[Tensor] = []

        def real(*args: Any, **kwargs: Any) -> None:
            done.append(_first(self._call(index, hidden, args, kwargs)))
            raise _Reached

        self._forward(ids, {**self._skipping(index, hidden), index: real})
        return done[0]

    @torch.no_grad()
    def advance(self, index: int, ids: Tensor, hidden: Tensor) -> Tensor:
        """What block `index` + 1 gets, if block `index` gets `hidden`; of the last block, what it puts out.

        Not the same as `run` where a model does something between its blocks.
        """
        if index + 1 == len(self):
            return self.run(index, ids, hidden)
        caught: list[Tensor] = []

        def real(*args: Any, **kwargs: Any) -> Any:
            return self._call(index, hidden, args, kwargs)

        def catch(*args: Any, **kwargs: Any) -> None:
            caught.append(_hidden(args, kwargs))
            raise _Reached

        self._forward(ids, {**self._skipping(index, hidden), index: real, index + 1: catch})
        return _as_float(caught[0])

    @torch.no_grad()
    def finish(self, start: int, ids: Tensor, hidden: Tensor) -> Tensor:
        """The logits [B, T, V], in float32, from the hidden states that block `start` gets (after the last one: its
        output)."""
        replaced: dict[int, Callable[..., Any]] = dict(self._skipping(start, hidden))
        for index in range(start, len(self)):

            def real(*args: Any, index: int = index, **kwargs: Any) -> Any:
                return self._call(index, hidden if index == start else _hidden(args, kwargs), args, kwargs)

            replaced[index] = real
        logits: Tensor = self._forward(ids, replaced).logits
        return logits.float()

    def _skipping(self, count: int, hidden: Tensor) -> dict[int, Callable[..., Any]]:
        """For the first `count` blocks, something that computes nothing and returns `hidden` in the block's form."""

        def stand_in(length: int | None) -> Callable[..., Any]:
            def skip(*args: Any, **kwargs: Any) -> Any:
                given = _hidden(args, kwargs)
                passed = hidden.to(given.dtype)
                return passed if length is None else (passed, *[None] * (length - 1))

            return skip

        return {index: stand_in(self.lengths[index]) for index in range(count)}

    def _call(self, index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block's own forward, whatever stands in its place, with other hidden states."""
        block = self.modules[index]
        args, kwargs = _with_hidden(args, kwargs, hidden)
        output = type(block).forward(block, *args, **kwargs)
        if index == len(self.lengths):
            self.lengths.append(len(output) if isinstance(output, tuple) else None)
        return output

    def _forward(self, ids: Tensor, replaced: dict[int, Callable[..., Any]]) -> Any:
        with _forwards(self.modules, replaced), contextlib.suppress(_Reached):
            return self.model(input_ids=ids, use_cache=False)
        return None


@contextlib.contextmanager
def _forwards(modules: list[nn.Module], replaced: dict[int, Callable[..., Any]]) -> Iterator[None]:
    """Within the block, some modules have another forward. accelerate keeps its own there: it is put back."""
    before = {index: modules[index].__dict__.get("forward") for index in replaced}
    try:
        for index, forward in replaced.items():
            modules[index].forward = forward
        yield
    finally:
        for index, own in before.items():
            if own is None:
                modules[index].__dict__.pop("forward", None)
            else:
                modules[index].forward = own


def _first(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other hidden states, and every floating-point tensor in their dtype."""
    args, kwargs = _cast(args, hidden), {key: _cast(value, hidden) for key, value in kwargs.items()}
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def _cast(value: Any, like: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
    if isinstance(value, tuple | list):
        return type(value)(_cast(part, like) for part in value)
    if isinstance(value, dict):
        return {key: _cast(part, like) for key, part in value.items()}
    return value


def _as_float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
