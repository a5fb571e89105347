"""The table of implementations and the choice among them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from . import blocks, native, reference
from .request import Request

VARIABLE = "QLLM_HF_ATTENTION"


@dataclass(frozen=True)
class Implementation:
    """One way to run attention over packed rows; `refuses` gives the reason why it cannot take a request, or None."""

    name: str
    summary: str
    run: Callable[[Request], Tensor]
    refuses: Callable[[Request], str | None]


@dataclass(frozen=True)
class Resolution:
    """The implementation that runs, and (name, reason) of each one that was passed over before it."""

    chosen: Implementation
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        passed = "".join(f"; not {name}: {reason}" for name, reason in self.refused)
        return f"{self.chosen.name} ({self.chosen.summary}){passed}"


DEQUANTIZE = Implementation(
    "dequantize", "torch, all keys and values are decoded for each call", reference.attend, lambda _: None
)
ATTENTION = (
    Implementation("kernel", "C++, straight on packed keys and values", native.attend, native.refuses),
    Implementation("blocks", "torch, keys and values are decoded in parts", blocks.attend, blocks.refuses),
    DEQUANTIZE,
)


def _known(name: str | None) -> str | None:
    names = [implementation.name for implementation in ATTENTION]
    if name is not None and name not in names:
        raise ConfigError(f"{VARIABLE}={name!r} is no implementation: allowed are {', '.join(names)}.")
    return name


_preferred: str | None = None


@contextlib.contextmanager
def prefer(name: str | None) -> Iterator[None]:
    """Within the block, run the named implementation wherever it can take the request.

    Raises:
        ConfigError: there is no implementation of that name.
    """
    global _preferred
    before, _preferred = _preferred, _known(name)
    try:
        yield
    finally:
        _preferred = before


def preferred() -> str | None:
    """The implementation that the user asked for: by `prefer(name)`, or the environment variable QLLM_HF_ATTENTION.

    Raises:
        ConfigError: QLLM_HF_ATTENTION names no implementation.
    """
    return _preferred or _known(os.environ.get(VARIABLE))


def resolve(request: Request) -> Resolution:
    """Which implementation takes a request, and why those before it do not."""
    wanted = preferred()
    for implementation in ATTENTION:
        if implementation.name == wanted and implementation.refuses(request) is None:
            return Resolution(implementation, ())
    refused: list[tuple[str, str]] = []
    for implementation in ATTENTION:
        reason = implementation.refuses(request)
        if reason is None:
            return Resolution(implementation, tuple(refused))
        refused.append((implementation.name, reason))
    raise AssertionError("the last implementation accepts everything")


def attend(request: Request) -> Tensor:
    """The attention that a request means: [B, Hq, Tq, Dv] in the dtype of the query."""
    return resolve(request).chosen.run(request)
