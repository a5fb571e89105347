"""What somebody wants to run, where, and for what: the question of which a scheme is the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ..cost.devices import Device
from ..errors import ConfigError, did_you_mean
from ..published.benchmarks import ABILITIES, STUDY_ABILITIES
from ..published.models import size_class
from ..published.names import family_name

TOPICS: Final = {
    "nlp": "basic NLP",
    "icl": "in-context learning",
    "if": "instruction following",
    "mr": "multi-step reasoning",
    "sc": "self-calibration",
    "trust": "trustworthiness",
    "dialogue": "dialogue",
    "long": "long context",
}
"""What rules and data speak of: the abilities, with the emergent ones apart."""
EMERGENT_TOPICS: Final = ("icl", "if", "mr", "sc")
LONG: Final = 4096
"""Tokens from which on a context is a long one (finding F17)."""
EXPERT_CLASS_B: Final = 7.0
"""A mixture of experts is judged as a dense model of so many billion parameters, if it has as many (finding F4)."""
TOLERANCE: Final = 2.0
"""Percent of loss that the study's recommendations allow."""


@dataclass(frozen=True)
class Situation:
    """What a scheme is wanted for.

    Attributes:
        abilities: some of nlp, emergent, trust, dialogue, long; icl, if, mr, sc are parts of "emergent"; "all".
        params_b: all parameters, in billions.
        moe: whether the model is a mixture of experts.
        context: tokens of each sequence, prompt and answer.
        batch: sequences at once.
        memory_bytes: that weights and cache may take; None is without a limit.
        device: for times; None leaves them out.
        tolerance: percent of loss that is acceptable.
        family: the study's name of the model's family, "" if it is none of them.
        model: a name for the page; "" if only the size is known.
        has_kv: whether the model caches keys and values at all; state-space models do not.

    Raises:
        ConfigError: a value that cannot be.
    """

    abilities: tuple[str, ...]
    params_b: float
    moe: bool = False
    context: int = 2048
    batch: int = 1
    memory_bytes: int | None = None
    device: Device | None = None
    tolerance: float = TOLERANCE
    family: str = ""
    model: str = ""
    has_kv: bool = True

    def __post_init__(self) -> None:
        abilities = tuple(dict.fromkeys(_ability(name) for name in self.abilities))
        if not abilities:
            raise ConfigError(f"no abilities. Give some of {', '.join((*ABILITIES, *EMERGENT_TOPICS))}, or all.")
        object.__setattr__(self, "abilities", abilities)
        if self.family:
            object.__setattr__(self, "family", family_name(self.family))
        for name in ("context", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r}: give a positive whole number.")
        for name in ("params_b", "memory_bytes", "tolerance"):
            value = getattr(self, name)
            if value is None and name == "memory_bytes":
                continue
            smallest = "0 or more" if name == "tolerance" else "more than 0"
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or value < 0 or (value == 0 and name != "tolerance"):
                raise ConfigError(f"{name}={value!r}: give a number, {smallest}.")

    @property
    def size_b(self) -> float:
        """The dense size that counts, in billions: rounded as names are, so that 6.7 is 7; at most 7 for experts."""
        size = min(self.params_b, EXPERT_CLASS_B) if self.moe else self.params_b
        return float(round(size)) if size >= 5.5 else size

    @property
    def size_class(self) -> str:
        """The study's models of about this size, by name of the class."""
        return size_class(self.size_b)

    @property
    def is_long(self) -> bool:
        """Whether contexts are long ones, whatever they are for."""
        return self.context >= LONG

    @property
    def topics(self) -> tuple[str, ...]:
        """What to ask rules and data about; a long context makes "long" one of it."""
        wanted = set(self.abilities) | ({"long"} if self.is_long else set())
        if "all" in wanted:
            wanted |= set(TOPICS)
        if "emergent" in wanted:
            wanted |= set(EMERGENT_TOPICS)
        return tuple(topic for topic in TOPICS if topic in wanted)


def _ability(name: str) -> str:
    ours = {theirs: ability for ability, theirs in STUDY_ABILITIES.items()}
    found = ours.get(str(name).strip().lower(), str(name).strip().lower())
    allowed = (*ABILITIES, *EMERGENT_TOPICS, "all")
    if found not in allowed:
        raise ConfigError(
            f"ability {name!r} is none. There are {', '.join(ABILITIES)}; of the emergent ones "
            f"{', '.join(EMERGENT_TOPICS)}; or all.{did_you_mean(found, allowed)}"
        )
    return found
