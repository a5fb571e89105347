"""The table of implementations and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..choices import Choices
from . import blocks, gpu, native, reference
from .request import Request


@dataclass(frozen=True)
class Implementation:
    """One way to run attention over packed rows; `refuses` gives the reason why it cannot take a request, or None."""

    name: str
    summary: str
    run: Callable[[Request], Tensor]
    refuses: Callable[[Request], str | None]
    automatic: bool = True


DEQUANTIZE = Implementation(
    "dequantize", "torch, all keys and values are decoded for each call", reference.attend, lambda _: None
)
_INTERPRETER = Implementation("interpreter", "Triton in Python", gpu.attend, gpu.refuses_interpreter, False)
ATTENTION = (
    Implementation("kernel", "C++, straight on packed keys and values", native.attend, native.refuses),
    Implementation("triton", "Triton, straight on packed keys and values", gpu.attend, gpu.refuses),
    *([_INTERPRETER] if gpu.INTERPRETED else []),
    Implementation("blocks", "torch, keys and values are decoded in parts", blocks.attend, blocks.refuses),
    DEQUANTIZE,
)


CHOICES: Choices[Request, Implementation] = Choices("QLLM_HF_ATTENTION", lambda: ATTENTION)
prefer, preferred, resolve = CHOICES.prefer, CHOICES.preferred, CHOICES.resolve


def attend(request: Request) -> Tensor:
    """The attention that a request means: [B, Hq, Tq, Dv] in the dtype of the query."""
    return resolve(request).chosen.run(request)
