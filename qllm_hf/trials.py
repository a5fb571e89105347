"""Compiled code that has to give the right answer once, on this machine, before its answers are used.

What was never run on the hardware at hand may be miscompiled for it, or not at all. So the first result of each kind is
compared with the one of plain torch. What differs, or fails, is not tried again in this process: torch goes on, with a
warning that says why. The price is one more computation per kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from .errors import QllmWarning

T = TypeVar("T")

SAME = 0.05
"""Of a number and the root mean square of its row together: by how much it may be off. A wrong tile or scale shows."""

ROWS = 64
"""At either end of a result that are looked at."""


class Trials:
    """Which kinds of work the compiled code for something has shown to do right.

    Args:
        what: names the code in warnings, such as "the kernels for GPUs".
        instead: what the user can do, at the end of a warning.
    """

    def __init__(self, what: str, instead: str) -> None:
        self.what, self.instead = what, instead
        self.passed: set[Hashable] = set()
        self.failed: dict[Hashable, str] = {}

    def run(
        self, kind: Hashable, fast: Callable[[], T | None], fault: Callable[[T], str | None], plain: Callable[[], T]
    ) -> T:
        """`fast()` for kinds that have passed, `plain()` for those that have failed, and for a new kind a trial.

        Args:
            kind: all that decides which code is compiled and how it is launched.
            fast: the compiled code; None if it does not take what it is given, which `plain` then does.
            fault: what is wrong with a result of `fast`, or None. Raises Untestable where that cannot be said.
        """
        if kind in self.passed:
            found = fast()
            return plain() if found is None else found
        if kind in self.failed or _is_capturing():  # a graph that is being recorded cannot wait for an answer
            return plain()
        try:
            found = fast()
            if found is None:
                return plain()
            wrong = fault(found)
        except Untestable:
            return plain()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler or driver has to say
            wrong = f"{type(error).__name__}: {error}"
        if wrong is None:
            assert found is not None
            self.passed.add(kind)
            return found
        self.failed[kind] = wrong
        warnings.warn(
            f"{self.what} are not used for {kind}: {wrong}. Plain torch does it, slower. {self.instead}",
            QllmWarning,
            stacklevel=3,
        )
        return plain()


class Untestable(Exception):
    """A result that says nothing about the code: what it should be is not finite."""


def ends(x: Tensor) -> Tensor:
    """The first and the last rows of x [..., N]: [R, N]. What lies between is cut into tiles like theirs."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if len(rows) <= 2 * ROWS else torch.cat([rows[:ROWS], rows[-ROWS:]])


def difference(found: Tensor, wanted: Tensor) -> str | None:
    """What is wrong with numbers [..., N] that should be about those wanted, or None.

    Raises:
        Untestable: those wanted are not all finite.
    """
    return _fault(found, wanted, _largest_share)


def distance(found: Tensor, wanted: Tensor) -> str | None:
    """As `difference`, for all numbers together: some may be others, such as codes that were rounded the other way.

    Raises:
        Untestable: those wanted are not all finite.
    """
    return _fault(found, wanted, lambda off, size: off.norm() / size.norm())


def _largest_share(off: Tensor, wanted: Tensor) -> Tensor:
    size = wanted.abs() + wanted.square().mean(-1, keepdim=True).sqrt()
    return torch.where(off == 0, 0.0, off.abs() / size).amax()  # a row of zeros is right if it is one


def _fault(found: Tensor, wanted: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    if found.shape != wanted.shape:
        return f"a result of {list(found.shape)} where {list(wanted.shape)} is right"
    if not wanted.numel():
        return None
    wanted = wanted.to(found.dtype).float()
    if not wanted.isfinite().all():
        raise Untestable
    off = found.float() - wanted
    share = float(measure(off, wanted)) if off.any() else 0.0
    return None if share <= SAME else f"numbers are off by up to {share:.3g} of their size"


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
