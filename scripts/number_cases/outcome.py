"""What came of one implementation in one case, and when it is a fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from qllm_kernels import cpu

VANISHING = 3e-32
"""The CPU kernels take blocks of activations that are all smaller for zeros (kernels/cpu/activations.h)."""


class Outcome(NamedTuple):
    """Of one implementation.

    Attributes:
        share: the largest distance from float64, in parts of what rounding explains.
        relative: the same in parts of the size of what could be added.
        fault: what is wrong, or nothing.
    """

    implementation: str
    share: float
    relative: float
    fault: str = ""


def compare(
    name: str, found: Tensor, exact: Tensor, tolerance: Tensor, magnitude: Tensor, spoiled: Tensor | None = None
) -> Outcome:
    """How far `found` is from float64.

    `spoiled` are results that have to show that something was not finite. Elsewhere: beyond the end of the dtype a
    result may be infinite; what rounding cannot move there has to be a number, and one within the tolerance.
    """
    if found.shape != exact.shape:
        return Outcome(name, 0, 0, f"a result of {list(found.shape)} where {list(exact.shape)} is right")
    spoiled = torch.zeros(exact.shape, dtype=torch.bool) if spoiled is None else spoiled.expand(exact.shape)
    finite = found.isfinite()
    if bool((finite & spoiled).any()):
        return Outcome(name, 0, 0, f"{int((finite & spoiled).sum())} finite results of what is not finite")
    most = torch.finfo(found.dtype).max
    reach = exact.abs() + tolerance
    lost = ~finite & ~spoiled & (reach < most)
    if bool(lost.any()):
        return Outcome(name, 0, 0, f"{int(lost.sum())} results are not finite, which should be")
    compared = finite & ~spoiled & exact.isfinite()
    if not bool(compared.any()):
        return Outcome(name, 0, 0)
    off = (found.double() - exact).abs()[compared]
    share = float((off / tolerance.expand(exact.shape)[compared].clamp(min=5e-324)).amax())
    size = magnitude.expand(exact.shape)[compared]
    relative = float(torch.where(size > 1e-30, off / size, 0.0).amax())
    fault = f"off by {share:.3g} of what rounding explains, {relative:.3g} of the size" if share > 1 else ""
    return Outcome(name, share, relative, fault)


def levels() -> tuple[str, ...]:
    """The levels of the CPU kernels that this processor has; none without a library."""
    return () if cpu.missing() else cpu.library().levels


@contextmanager
def at(level: str) -> Iterator[None]:
    """Within the block the CPU kernels run at this level."""
    library = cpu.library()
    before = library.level
    library.set_level(level)
    try:
        yield
    finally:
        library.set_level(before)
