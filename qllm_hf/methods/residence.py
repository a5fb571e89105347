"""Where decoder blocks live while a model is calibrated: all in memory, or one at a time.

A block is worked on in float32, whatever dtype it is stored in, and its float weights go back to their own dtype when
it is done.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ModelError
from ..nn import PackedModule
from .work import Work


class Residence(Protocol):
    """Gives out blocks one after another."""

    def open(self, index: int) -> nn.Module:
        """The block with its weights in float32 on the device of computation."""

    def dtypes(self, index: int) -> dict[str, torch.dtype]:
        """In which dtype the parameters of the open block are stored, by their name within it."""

    def close(self, index: int) -> None:
        """The block is done: its weights are packed, or back in their own dtype."""

    def finish(self) -> None:
        """All blocks are done: the model is whole again."""


class _Home:
    """Remembers in which dtype, and where, the tensors of a block are stored."""

    def __init__(self, block: nn.Module) -> None:
        tensors: dict[str, Tensor] = dict(block.named_parameters()) | dict(block.named_buffers())
        self.of = {name: (tensor.dtype, tensor.device) for name, tensor in tensors.items()}

    def restore(self, block: nn.Module) -> None:
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            if name in self.of:
                dtype, device = self.of[name]
                tensor.data = tensor.data.to(device, dtype)


class _Opened:
    """What all residences share: a block is opened in float32, and its dtypes are remembered until it is closed."""

    def __init__(self, modules: list[nn.Module], device: str | torch.device | None = None) -> None:
        self._modules, self._device = modules, device
        self._homes: dict[int, _Home] = {}

    def open(self, index: int) -> nn.Module:
        block = self._modules[index]
        self._homes[index] = _Home(block)
        return _in_float32(block, self._device)

    def dtypes(self, index: int) -> dict[str, torch.dtype]:
        return {name: dtype for name, (dtype, _) in self._homes[index].of.items()}

    def close(self, index: int) -> None:
        self._homes.pop(index).restore(self._modules[index])

    def finish(self) -> None:
        pass


class InMemory(_Opened):
    """Blocks of a model that is in memory as a whole."""

    def close(self, index: int) -> None:
        self._modules[index].to(next(iter(self._homes[index].of.values()))[1])
        super().close(index)


class FromDisk(_Opened):
    """Blocks that are read from the checkpoint when their turn comes, and forgotten when done.

    For a model that `streamed.offloaded` made: everything but the blocks is in memory, the blocks are on the meta
    device.

    Args:
        weights: {full name of a parameter: how to read it}, a mapping that reads on access.
        prefix: name of the list of blocks.
    """

    def __init__(
        self, modules: list[nn.Module], weights: Any, prefix: str, device: str | torch.device | None = None
    ) -> None:
        super().__init__(modules, device or "cpu")
        self._weights, self._prefix = weights, prefix

    def open(self, index: int) -> nn.Module:
        block = self._modules[index]
        for name, parameter in list(block.named_parameters()):
            if parameter.is_meta:
                tensor = self._weights[f"{self._prefix}.{index}.{name}"]
                _set(block, name, nn.Parameter(tensor.to(parameter.dtype), requires_grad=False))
        return super().open(index)

    def close(self, index: int) -> None:
        block = self._modules[index]
        block.to("cpu")
        super().close(index)
        self.keep(index, block)
        for module in block.modules():  # buffers stay: some are computed when the model is made, and in no file
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.data.to("meta"), requires_grad=False)

    def keep(self, index: int, block: nn.Module) -> None:
        """What is done with a block before its weights are forgotten: nothing."""


class OnDisk(FromDisk):
    """Blocks that are read from the checkpoint when their turn comes, and kept in the work folder when done."""

    def __init__(
        self,
        modules: list[nn.Module],
        weights: Any,
        prefix: str,
        work: Work,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(modules, weights, prefix, device)
        self._work = work

    def keep(self, index: int, block: nn.Module) -> None:
        """Save the block in the work folder."""
        self._work.save_block(index, block.state_dict())

    def finish(self) -> None:
        for index, block in enumerate(self._modules):
            state = self._work.load_block(index)
            if lost := block.state_dict().keys() - state.keys():
                raise CheckpointError(f"{self._work.block_file(index)} lacks {sorted(lost)[0]}. Give --restart.")
            for name, tensor in state.items():
                parameter = nn.Parameter(tensor, requires_grad=False)
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # as what transformers has loaded
                _set(block, name, parameter)


def _in_float32(block: nn.Module, device: str | torch.device | None) -> nn.Module:
    if device is not None:
        block.to(device)
    for module in block.modules():
        if isinstance(module, PackedModule):
            raise ModelError("a block is packed already. Calibrate the float model.")
    for tensor in [*block.parameters(), *block.buffers()]:
        if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
            tensor.data = tensor.data.float()
    return block


def _set(block: nn.Module, name: str, value: nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    module = block.get_submodule(owner)
    if last in module._buffers:
        module._buffers[last] = value.data
    else:
        module._parameters[last] = value
