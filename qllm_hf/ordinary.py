"""Tensors that compiled code may work on directly, past torch's dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def is_plain(x: Tensor) -> bool:
    """Whether x is `is_ordinary`, and on the CPU."""
    return x.is_cpu and is_ordinary(x)


def is_ordinary(x: Tensor) -> bool:
    """Whether nobody would notice that work on x passes the dispatcher by: no gradient, trace, mode or subclass."""
    return (
        not torch.compiler.is_compiling()
        and (type(x) is Tensor or type(x) is nn.Parameter)
        and not (x.requires_grad and torch.is_grad_enabled())
        and not x.is_neg()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._is_tracing()
        and forward_ad._current_level < 0
    )
