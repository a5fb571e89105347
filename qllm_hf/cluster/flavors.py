"""Machines that Jobs on the Hub run on, by their memory, and which one a job needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..errors import ConfigError
from ..reporting.text import bytes_text
from .footprint import Footprint

USABLE: Final = 0.92
"""Part of an accelerator's memory that a model can have: the rest is the driver's and the libraries'."""


@dataclass(frozen=True)
class Flavor:
    """A kind of machine.

    Attributes:
        name: as `hf jobs run --flavor` has it.
        gpus: accelerators; 0 is a computer with none.
        memory: bytes of all accelerators together, or of the computer without any.
    """

    name: str
    gpus: int
    memory: int

    def holds(self, need: Footprint) -> bool:
        """Whether a job fits."""
        return (need.on_device if self.gpus else need.total) <= USABLE * self.memory

    def __str__(self) -> str:
        return f"{self.name} ({bytes_text(self.memory)}{f' on {self.gpus} GPUs' if self.gpus > 1 else ''})"


def _gpu(name: str, gpus: int, gigabytes: int) -> Flavor:
    return Flavor(name, gpus, gpus * gigabytes * 10**9)


# Memory of an accelerator as its maker gives it, of a computer as the Hub's documentation of Spaces does.
# `hf jobs hardware` lists what there is today, with prices.
FLAVORS: Final = (
    Flavor("cpu-basic", 0, 16 * 10**9),
    Flavor("cpu-upgrade", 0, 32 * 10**9),
    _gpu("t4-small", 1, 16),
    _gpu("t4-medium", 1, 16),
    _gpu("l4x1", 1, 24),
    _gpu("a10g-small", 1, 24),
    _gpu("a10g-large", 1, 24),
    _gpu("l40sx1", 1, 48),
    _gpu("a10g-largex2", 2, 24),
    _gpu("a100-large", 1, 80),
    _gpu("rtx-pro-6000", 1, 96),
    _gpu("l4x4", 4, 24),
    _gpu("a10g-largex4", 4, 24),
    _gpu("h200", 1, 141),
    _gpu("l40sx4", 4, 48),
    _gpu("rtx-pro-6000x2", 2, 96),
    _gpu("h200x2", 2, 141),
    _gpu("a100x4", 4, 80),
    _gpu("l40sx8", 8, 48),
    _gpu("rtx-pro-6000x4", 4, 96),
    _gpu("h200x4", 4, 141),
    _gpu("a100x8", 8, 80),
    _gpu("rtx-pro-6000x8", 8, 96),
    _gpu("h200x8", 8, 141),
)
AUTO: Final = "auto"


def choose_flavor(need: Footprint, wanted: str = AUTO) -> Flavor:
    """The machine for a job: the one that is wanted, or the first with GPUs, the smallest first, that holds it.

    Raises:
        ConfigError: it does not fit, or there is no machine of this name.
    """
    if wanted == AUTO:
        for flavor in FLAVORS:
            if flavor.gpus and flavor.holds(need):
                return flavor
        raise ConfigError(f"no machine for Jobs holds {bytes_text(need.on_device)}; the largest is {FLAVORS[-1]}.")
    for flavor in FLAVORS:
        if flavor.name == wanted:
            if not flavor.holds(need):
                raise ConfigError(
                    f"--job-flavor {flavor} does not hold {bytes_text(need.on_device if flavor.gpus else need.total)}. "
                    f"Give a larger one, or {AUTO}."
                )
            return flavor
    raise ConfigError(f"--job-flavor {wanted!r}: known are {', '.join(each.name for each in FLAVORS)}, and {AUTO}.")
