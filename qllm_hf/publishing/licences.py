"""Licences as the Hub knows them, and which one a quantized model has: its base model's, or what the user says.

No licence is ever guessed. Weights are derived from weights, so a wrong licence here is a wrong claim about somebody
else's work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ..errors import did_you_mean
from .problems import PublishError

OTHER: Final = "other"
KEYS: Final = ("license", "license_name", "license_link")
COMMON: Final = (
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "gpl-3.0",
    "agpl-3.0",
    "lgpl-3.0",
    "mpl-2.0",
    "openrail",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "gemma",
    "unlicense",
    OTHER,
)
"""Ids that a slip of the pen is compared with; the Hub knows more.

Source: https://huggingface.co/docs/hub/repositories-licenses."""
_ID: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_NO_LETTER: Final = re.compile(r"[^a-z0-9]")
_HOW: Final = (
    "--license apache-2.0, for example, or --license other --license-name NAME --license-link URL "
    "(`qllm-hf card` takes these options)."
)


def licence_problem(front: Mapping[str, Any]) -> str:
    """What is wrong with the licence of a card's block, or ""."""
    licence = str(front["license"])
    plain = {_NO_LETTER.sub("", each): each for each in COMMON}.get(_NO_LETTER.sub("", licence.lower()), licence)
    if not _ID.fullmatch(licence) or plain != licence:
        return f"license {licence!r} is no id of the Hub.{did_you_mean(plain, COMMON)}"
    if licence == OTHER and not front.get("license_name"):
        return f"license {OTHER!r} needs license_name and license_link"
    if licence == OTHER and not front.get("license_link"):
        return f"license {OTHER!r} needs license_link: a URL, or LICENSE, a file beside the card"
    return ""


def choose_licence(
    base: str, card: Mapping[str, Any], given: Mapping[str, str | None], *, has_text: bool
) -> dict[str, str]:
    """{license, license_name, license_link} of a model quantized from `base`: what was given, or as its card says.

    Args:
        base: for messages.
        card: of the base model.
        given: the same keys, as the user said them.
        has_text: whether a file LICENSE goes with the model.

    Raises:
        PublishError: neither says a licence, or what was given is incomplete.
    """
    said = {key: value for key, value in given.items() if value}
    if said and "license" not in said:
        raise PublishError(f"a name or a link of a licence was given, but no licence. Say both: {_HOW}")
    found = said or {key: card[key] for key in KEYS if card.get(key)}
    if "license" not in found:
        raise PublishError(
            f"the card of {base} names no licence, and none is guessed. Find out which one it has and say it: {_HOW}"
        )
    if found["license"] == OTHER and "license_link" not in found and has_text:
        found["license_link"] = "LICENSE"
    link = str(found.get("license_link", ""))
    if has_text and link.upper().startswith("LICENSE"):
        found["license_link"] = "LICENSE"
    if problem := licence_problem(found):
        raise PublishError(f"{problem}. Say it: {_HOW}")
    return {key: found[key] for key in KEYS if key in found}
