"""What a sweep compares: schemes by name, some of them with a method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from ..config import QllmConfig
from ..errors import ConfigError, did_you_mean
from ..results import BASELINE

SETS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "quick": ("FP16", "W8", "W4", "W3", "KV8", "KV4", "W4KV8"),
        "study": (
            *("FP16", "W8", "W4", "W3", "W2", "W8A8", "W4A8", "W4A4", "KV8", "KV4", "KV3", "KV2"),
            *("W8KV8", "W4KV8", "W8KV4", "W4KV4"),
        ),
    }
)
"""Names for several schemes; "study" is all that the study measured (section 1 of its specification)."""

_CALIBRATING: Final[tuple[str, ...]] = ("calibration", "samples", "seqlen")

Candidates = dict[str, QllmConfig | None]
"""{label: config}, the float model, which has none, first."""


def parse_candidates(texts: Iterable[str], *, baseline: bool = True, **options: Any) -> Candidates:
    """The schemes of a sweep by their labels, "FP16" first, whether it was named or not unless `baseline` is False.

    A label is a scheme, or a scheme and a method: "W3+gptq", "W3KV8+awq", "W8A8+smoothquant+gptq". A name of `SETS`
    stands for all of its schemes.

    Args:
        baseline: whether the float model comes along, with which all others are compared. A part of a sweep whose other
            parts are measured elsewhere does without.
        options: of QllmConfig, for all of them: group sizes, kept layers. Those of calibration reach methods only.

    Raises:
        SchemeError, ConfigError: one of them cannot be, or two that differ would have the same label.
    """
    calibrating: dict[str, Any] = {
        key: options.pop(key) for key in ("calibration", "samples", "seqlen") if key in options
    }
    found: Candidates = {BASELINE: None} if baseline else {}
    for text in (part.strip() for part in texts):
        for each in SETS.get(text.lower(), (text,)):
            label, config = _candidate(each, options, calibrating)
            found.setdefault(label, config)
    if baseline and len(found) == 1:
        raise ConfigError(
            f"a sweep compares schemes with the float model, and none is given. Name some (W4,KV8,W4KV8) or "
            f"{' or '.join(SETS)}."
        )
    return found


def _candidate(text: str, options: Mapping[str, Any], calibrating: Mapping[str, Any]) -> tuple[str, QllmConfig | None]:
    name, plus, method = text.partition("+")
    if not name or (plus and not method):
        raise ConfigError(f"{text!r} is no scheme. Write W4KV8, or with a method W3KV8+gptq.")
    if text.lower() not in SETS and (near := did_you_mean(text.lower(), SETS)) and not name[:1].isupper():
        raise ConfigError(f"there is no scheme and no set of schemes {text!r}.{near} Sets: {', '.join(SETS)}.")
    extra = {"method": method, **calibrating} if method else {}
    config = QllmConfig.from_scheme(name, **options, **extra)
    bare = QllmConfig.from_scheme(name)
    if str(config.scheme) == BASELINE:
        if method:
            raise ConfigError(f"{text!r}: a method needs bits below 16.")
        return BASELINE, None
    return f"{bare.scheme}{plus}{config.method if method else ''}", config
