"""Rules put together: the safest bits of each, and what a model's size and kind change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..scheme import Scheme
from .rules import SMALL_B, Rule
from .situation import Situation

_SAFER: Final = {2: 3, 3: 4, 4: 8}
"""One step safer; 8 bits stay, since the study has nothing between them and 16."""


@dataclass(frozen=True)
class Recommendation:
    """Rules put together. Empty strings where nothing is recommended.

    Attributes:
        w, wa, kv, joint: the fewest bits, such as "W4", "W4A8", "KV8", "W8KV8".
        avoid: schemes to stay away from.
    """

    w: str = ""
    wa: str = ""
    kv: str = ""
    joint: str = ""
    avoid: tuple[str, ...] = ()

    def avoids(self, scheme: Scheme) -> str:
        """The avoided scheme that this one is no safer than, or ""."""
        for text in self.avoid:
            bad = Scheme.parse(text)
            pairs = ((bad.w, scheme.w), (bad.a, scheme.a), (bad.kv, scheme.kv))
            if all(given <= limit for limit, given in pairs if limit < 16):
                return text
        return ""

    def covers(self, scheme: Scheme) -> bool:
        """Whether a scheme has at least the bits that are recommended for it; weights and KV together need `joint`."""
        if scheme.w < 16 and scheme.kv < 16:
            limit = self.joint if scheme.a == 16 else ""
        elif scheme.kv < 16:
            limit = self.kv
        else:
            limit = self.w if scheme.a == 16 else self.wa
        if not limit:
            return False
        fewest = Scheme.parse(limit)
        return scheme.w >= fewest.w and scheme.a >= fewest.a and scheme.kv >= fewest.kv


def merge(rules: tuple[Rule, ...]) -> Recommendation:
    """The safest bits of each kind over all rules, before anything changes them.

    A joint scheme that one rule allows gets the KV bits that the others want.
    """
    w, wa, kv, joint = (_safest([getattr(rule, kind) for rule in rules]) for kind in ("w", "wa", "kv", "joint"))
    avoid = tuple(dict.fromkeys(scheme for rule in rules for scheme in rule.avoid))
    return _lifted(Recommendation(w, wa, kv, joint, avoid))


def adjust(published: Recommendation, situation: Situation) -> Recommendation:
    """The published recommendation after the modifiers of a situation."""
    w, kv, joint = published.w, published.kv, published.joint
    if situation.size_b < SMALL_B:
        w, kv = (_step(text) for text in (w, kv))
    if not situation.has_kv:
        kv = joint = ""
    return _lifted(Recommendation(w, published.wa, kv, joint, published.avoid))


def _lifted(found: Recommendation) -> Recommendation:
    """With a joint scheme that has at least the bits of W and KV alone."""
    if not found.joint:
        return found
    parts = [Scheme.parse(text) for text in (found.joint, found.w, found.kv) if text]
    bits = {kind: max(getattr(part, kind) for part in parts if getattr(part, kind) < 16) for kind in ("w", "kv")}
    return Recommendation(found.w, found.wa, found.kv, str(Scheme(**bits)), found.avoid)


def _step(text: str) -> str:
    if not text:
        return text
    scheme = Scheme.parse(text)
    return str(Scheme(w=_SAFER.get(scheme.w, scheme.w), kv=_SAFER.get(scheme.kv, scheme.kv)))


def _safest(texts: list[str | None]) -> str:
    schemes = [Scheme.parse(text) for text in texts if text]
    if not schemes:
        return ""
    return str(Scheme(*(max(getattr(scheme, kind) for scheme in schemes) for kind in ("w", "a", "kv"))))
