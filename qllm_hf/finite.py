"""Where the first NaN or infinity of a model comes from: a check that is asked for, since it waits for each module.

Nothing in this package turns NaN into a number, so one in the activations reaches the logits. There greedy search takes
whatever token comes first, and says nothing. `check_finite` stops at the first module that makes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError
from .nn import PackedModule


@contextmanager
def check_finite(model: nn.Module) -> Iterator[None]:
    """Within the block, a forward of the model stops at the first NaN or infinity, and says where it is from.

    Parameters are looked at once, before; then what goes into and comes out of each module. Compiled graphs run
    uncompiled meanwhile. Masks and other keyword arguments are not looked at: those may be infinite.

    Raises:
        ModelError: names the module, what of it is not finite, how many of its numbers, and the first by its index.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        _check_parameters(model)
        for name, module in model.named_modules():
            if _is_whole(module):
                stack.callback(module.register_forward_pre_hook(_before(name)).remove)
            stack.callback(module.register_forward_hook(_after(name)).remove)
        yield


class FiniteLogits:
    """A logits processor of `generate` that stops at NaN, of which a token would be chosen all the same.

    Infinities are left alone: -inf is how logits forbid a token.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [B, V] themselves.

        Raises:
            ModelError: some are NaN.
        """
        if bool(scores.isnan().any()):
            rows = scores.isnan().any(-1).nonzero().flatten().tolist()
            raise ModelError(
                f"the logits of token {input_ids.shape[1]} are NaN (sequences {rows}): whatever was chosen would mean "
                "nothing. Find the layer they come from with qllm_hf.check_finite(model), or "
                "`qllm-hf generate --check-finite`."
            )
        return scores


def not_finite(x: Tensor) -> str | None:
    """`2 of 64 numbers are NaN, the first at [0, 3]`: what of a tensor is not finite, or None."""
    if not x.is_floating_point() or x.is_meta or bool(x.isfinite().all()):
        return None
    kinds = {"NaN": x.isnan(), "infinite": x.isinf()}
    parts = [f"{int(at.sum())} of {x.numel()} numbers are {kind}" for kind, at in kinds.items() if bool(at.any())]
    first = (~x.isfinite()).nonzero()[0].tolist()
    return f"{' and '.join(parts)}, the first at {first}"


def _check_parameters(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        wrong = None if _may_be_infinite(name) else not_finite(tensor)
        if wrong is not None:
            raise ModelError(f"{name}: {wrong}. So it is in the checkpoint, or it was never loaded.")


def _may_be_infinite(name: str) -> bool:
    return name.rpartition(".")[2] in ("causal_mask", "attn_bias", "bias_mask", "mask")


def _is_whole(module: nn.Module) -> bool:
    """Whether what lies between its input and its output belongs to no other module."""
    return isinstance(module, PackedModule) or not any(module.children())


def _before(name: str) -> Any:
    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for x in inputs:
            wrong = not_finite(x) if isinstance(x, Tensor) else None
            if wrong is not None:
                raise ModelError(
                    f"the input of {name} ({type(module).__name__}): {wrong}. All modules before it gave finite "
                    f"numbers, so it came about between them and this one, in {name.rpartition('.')[0] or 'the model'}."
                )

    return look


def _after(name: str) -> Any:
    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for x in output if isinstance(output, tuple) else (output,):
            wrong = not_finite(x) if type(x) is Tensor else None
            if wrong is not None:
                where = f"{name} ({type(module).__name__})" if name else type(module).__name__
                raise ModelError(f"the output of {where}: {wrong}. {_origin(module, inputs)}")

    return look


def _origin(module: nn.Module, inputs: tuple[Any, ...]) -> str:
    largest = max((float(x.abs().max()) for x in inputs if isinstance(x, Tensor) and x.numel()), default=0.0)
    if not _is_whole(module):
        return "It is the first that is not finite."
    return f"Its input is finite, with magnitudes up to {largest:.4g}, and so are its parameters."
