"""What the study recommends, as a table: seven rules, and what changes them.

Texts of the sources are not copied; tags say where each statement stands:
SUM a summary of the study, P-Q the paper as quoted (with the page), P-S another summary of the paper,
P-2 a third one, DATA computed from the published numbers, INF concluded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .situation import LONG, Situation

SMALL_B: Final = 6.0
"""Billions of parameters below which a model counts as small: W4 loses more than twice as much on LAMBADA there."""
BORDER_B: Final = 13.0
"""The size at which the emergent abilities get other bits."""


@dataclass(frozen=True)
class Rule:
    """One row of the study's recommendations.

    Attributes:
        id: "R1".
        topics: what it speaks of.
        title: for people.
        w, wa, kv, joint: the fewest bits it recommends; None if it says nothing.
        avoid: schemes to stay away from, and everything below them.
        findings: of the study, by number.
        sources: tags.
        above_b, up_to_b: sizes it speaks of, in billions: above the one (not included), up to the other (included).
        note: what a reader should know.
    """

    id: str
    topics: tuple[str, ...]
    title: str
    w: str | None
    wa: str | None
    kv: str | None
    joint: str | None
    avoid: tuple[str, ...]
    findings: tuple[str, ...]
    sources: tuple[str, ...]
    above_b: float = 0.0
    up_to_b: float = float("inf")
    note: str = ""

    def applies(self, situation: Situation) -> bool:
        """Whether it speaks of something that is asked for, and of a model of this size."""
        return bool(set(self.topics) & set(situation.topics)) and self.above_b < situation.size_b <= self.up_to_b


BORDER_NOTE: Final = "the study says nothing of 13B itself; it is counted with the smaller ones, whose bits are safer"

RULES: Final = (
    Rule(
        "R1",
        ("nlp",),
        "basic NLP",
        *("W4", "W4A8", "KV4", "W8KV4"),
        ("W2", "W4A4"),
        ("F1", "F5"),
        ("SUM", "P-2"),
        note="said of most large models",
    ),
    Rule(
        "R2",
        ("icl", "if"),
        "in-context learning, instructions, up to 13B",
        *("W4", "W4A8", "KV4", None),
        ("W4A4",),
        ("F6", "F10"),
        ("P-2", "SUM"),
        up_to_b=BORDER_B,
        note=BORDER_NOTE,
    ),
    Rule(
        "R3",
        ("mr", "sc"),
        "multi-step reasoning, self-calibration, up to 13B",
        *("W8", "W8A8", "KV8", None),
        ("W4A4",),
        ("F9", "F10"),
        ("SUM", "INF"),
        up_to_b=BORDER_B,
        note=f"W8A8 is concluded from W8; F10 alone would allow W4A8; {BORDER_NOTE}",
    ),
    Rule(
        "R4",
        ("icl", "if", "mr", "sc"),
        "emergent abilities, above 13B",
        *("W4", "W4A8", "KV4", None),
        ("W4A4",),
        ("F9", "F10"),
        ("SUM",),
        above_b=BORDER_B,
    ),
    Rule(
        "R5",
        ("dialogue",),
        "dialogue",
        *("W8", "W8A8", "KV4", None),
        ("W3", "KV3", "W2", "KV2", "W4A4"),
        ("F15", "F16"),
        ("SUM", "P-Q p.8"),
    ),
    Rule(
        "R6",
        ("long",),
        f"contexts of {LONG:,} tokens and more",
        *("W4", "W4A8", "KV8", "W8KV8"),
        ("KV3",),
        ("F17", "F18", "F19", "F20"),
        ("SUM", "P-Q p.9", "P-2"),
    ),
    Rule(
        "R7",
        ("trust",),
        "trustworthiness: no advice, only data",
        *(None, None, None, None),
        (),
        ("F11", "F12"),
        ("SUM", "P-S", "DATA"),
    ),
    Rule(
        "R7s",
        ("trust",),
        "trustworthiness of a small model",
        *(None, None, None, None),
        ("W3", "KV3"),
        ("F11", "F12"),
        ("INF",),
        up_to_b=7.0,
        note="small models start, or stop, judging what they used to decline",
    ),
)


@dataclass(frozen=True)
class Modifier:
    """What changes the rules, or how they are read.

    Attributes:
        id: for reference.
        text: what it says.
        findings, sources: as in `Rule`.
    """

    id: str
    text: str
    findings: tuple[str, ...]
    sources: tuple[str, ...]

    def applies(self, situation: Situation) -> bool:
        """Whether the situation calls for it."""
        return _CALLS_FOR[self.id](situation)


MODIFIERS: Final = (
    Modifier(
        "small",
        f"A model below {SMALL_B:g}B bears fewer bits worse: W and KV one step safer.",
        ("F2", "F6"),
        ("SUM", "P-2", "DATA"),
    ),
    Modifier(
        "large",
        "A large model bears fewer bits of W and KV better, and of A worse: look at W4A8 twice.",
        ("F2", "F3"),
        ("SUM", "P-Q p.4"),
    ),
    Modifier(
        "experts",
        "A mixture of experts bears as little as a dense model of about 7B: it is judged as one.",
        ("F4",),
        ("SUM", "P-2"),
    ),
    Modifier("strictest", "Several rules apply: the safest bits of each are taken.", (), ("INF",)),
    Modifier("no_kv", "The model caches no keys and values: KV bits have nothing to act on.", (), ("INF",)),
)
_CALLS_FOR: Final[Mapping[str, Callable[[Situation], bool]]] = {
    "small": lambda situation: situation.size_b < SMALL_B,
    "large": lambda situation: situation.size_b > BORDER_B,
    "experts": lambda situation: situation.moe,
    "strictest": lambda situation: sum(rule.applies(situation) for rule in RULES) > 1,
    "no_kv": lambda situation: not situation.has_kv,
}


def rules_for(situation: Situation) -> tuple[Rule, ...]:
    """The rules that speak of a situation."""
    return tuple(rule for rule in RULES if rule.applies(situation))


def modifiers_for(situation: Situation) -> tuple[Modifier, ...]:
    """What changes the rules in a situation."""
    return tuple(modifier for modifier in MODIFIERS if modifier.applies(situation))
