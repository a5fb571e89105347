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
    """One way to run attention over packed rows; `refuses` gives the reason why it cannot take a request, or None.

    `refuses_kind` says so of all requests that are like one, and decides what a compiled graph is made of: without it,
    an implementation does not make it worth while to keep rows packed in there.
    """

    name: str
    summary: str
    run: Callable[[Request], Tensor]
    refuses: Callable[[Request], str | None]
    automatic: bool = True
    refuses_kind: Callable[[Request], str | None] | None = None


DEQUANTIZE = Implementation(
    "dequantize", "torch, all keys and values are decoded for each call", reference.attend, lambda _: None
)
_INTERPRETER = Implementation(
    "interpreter", "Triton in Python", gpu.attend, gpu.refuses_interpreter, False, gpu.refuses_interpreted_kind
)
ATTENTION = (
    Implementation(
        "kernel",
        "C++, straight on packed keys and values",
        native.attend,
        native.refuses,
        refuses_kind=native.refuses_kind,
    ),
    Implementation(
        "triton",
        "Triton, straight on packed keys and values",
        gpu.attend,
        gpu.refuses,
        refuses_kind=gpu.refuses_kind,
    ),
    *([_INTERPRETER] if gpu.INTERPRETED else []),
    Implementation("blocks", "torch, keys and values are decoded in parts", blocks.attend, blocks.refuses),
    DEQUANTIZE,
)


CHOICES: Choices[Request, Implementation] = Choices("QLLM_HF_ATTENTION", lambda: ATTENTION)
prefer, preferred, resolve = CHOICES.prefer, CHOICES.preferred, CHOICES.resolve


def takes_kind(request: Request, wanted: str | None) -> bool:
    """Whether something better than decoding takes requests like this one, where the user asked for `wanted`."""
    return any(
        row.refuses_kind is not None and (row.automatic or row.name == wanted) and row.refuses_kind(request) is None
        for row in ATTENTION
    )


def attend(request: Request) -> Tensor:
    """The attention that a request means: [B, Hq, Tq, Dv] in the dtype of the query."""
    return resolve(request).chosen.run(request)
