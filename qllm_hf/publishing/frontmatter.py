"""A model card as two parts: the YAML block at its top, and the text below; and what must be true of the block.

    ---
    license: apache-2.0
    ---
    # text

Written as huggingface_hub writes it, so reading and saving a card there changes no byte of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..shown import short, short_text
from .licences import licence_problem
from .problems import PublishError

CARD: Final = "README.md"
INHERITED: Final = ("language", "license", "license_name", "license_link", "datasets")
"""What a quantized model takes over from its base model's card."""
OWNED: Final = (
    "license",
    "license_name",
    "license_link",
    "library_name",
    "pipeline_tag",
    "base_model",
    "base_model_relation",
)
"""Keys that are ours on a card that is already there. `tags` and `model-index` are merged; all others stay."""
ORDER: Final = ("language", *OWNED, "datasets", "tags")
INDEX: Final = "model-index"
_LONGEST: Final = 200_000  # characters: reading YAML takes a second for so many
_MOST: Final = 50_000
_BLOCK: Final = re.compile(r"\A\s*---[ \t]*\r?\n(?P<yaml>.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.S | re.M)
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_TEXTS: Final = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model_relation")


@dataclass(frozen=True)
class Card:
    """A card: the values of its YAML block, and its text."""

    front: dict[str, Any]
    text: str


def read_card(content: str, whose: str = CARD) -> Card:
    """The parts of a card; one without a YAML block has an empty one.

    Args:
        whose: what an error calls the file.

    Raises:
        PublishError: the block is no YAML mapping.
    """
    import yaml  # type: ignore[import-untyped]

    match = _BLOCK.match(content.removeprefix("\ufeff"))
    if match is None:
        return Card({}, content)
    if len(match["yaml"]) > _LONGEST:
        raise PublishError(
            f"{whose}: the block at the top of the card has {len(match['yaml'])} characters, and {_LONGEST} may be."
        )
    try:
        front = yaml.safe_load(match["yaml"]) or {}
        _check_size(front)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # dates and numbers that are none, too
        first = short_text(str(error).split("\n")[0])
        raise PublishError(
            f"{whose}: the block at the top of the card is no YAML ({first}). Repair it by hand."
        ) from None
    if not isinstance(front, dict):
        raise PublishError(
            f"{whose}: the block at the top of the card holds a {type(front).__name__}, not keys and values."
        )
    return Card(front, content.removeprefix("\ufeff")[match.end() :])


def _check_size(front: Any) -> None:
    """Raises ValueError if a block holds more than fits on a card: names for parts make few letters stand for many."""
    waiting, count = [front], 0
    while waiting:
        found = waiting.pop()
        count += 1
        if count > _MOST:
            raise ValueError(f"it stands for more than {_MOST} values")
        waiting.extend(found.values() if isinstance(found, dict) else found if isinstance(found, list | set) else ())


def write_card(card: Card) -> str:
    """The card as a text, in the form in which huggingface_hub writes it."""
    import yaml

    block = yaml.safe_dump(card.front, sort_keys=False, allow_unicode=True)
    return f"---\n{block.strip()}\n---\n{card.text}"


def merge_front(there: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a card that is there, with those that are ours; all but the model index, which is merged apart."""
    kept = {key: value for key, value in there.items() if key not in (*OWNED, "tags", INDEX)}
    tags = list(dict.fromkeys([*_listed(there.get("tags")), *_listed(ours.get("tags"))]))
    merged = {**ours, **kept, "tags": tags}
    return {key: merged[key] for key in (*ORDER, *merged) if key in merged and key != INDEX}


def check_front(front: Mapping[str, Any]) -> None:
    """Raises PublishError if the block is none that the Hub understands, naming each key that is wrong."""
    if problems := list(_problems(front)):
        raise PublishError(f"the card would not be understood: {'; '.join(problems)}.")


def _problems(front: Mapping[str, Any]) -> Iterator[str]:
    for key in ("license", "library_name", "pipeline_tag", "tags"):
        if not front.get(key):
            yield f"{key} is missing"
    for key in _TEXTS:
        if key in front and not isinstance(front[key], str):
            yield f"{key} is {short(front[key])}, not a text"
    if isinstance(front.get("license"), str) and (problem := licence_problem(front)):
        yield problem
    for base in _listed(front.get("base_model")):
        if not isinstance(base, str) or not _HUB_ID.fullmatch(base):
            yield f"base_model {short(base)} is no id on the Hub (owner/name)"
    for key in ("tags", "language", "datasets"):
        if not all(isinstance(each, str) and each for each in _listed(front.get(key))):
            yield f"{key} is {short(front[key])}, not a list of words"
    for model in _listed(front.get(INDEX)):
        yield from _index_problems(model)


def _index_problems(model: Any) -> Iterator[str]:
    try:
        for result in model["results"]:
            name = result["dataset"]["name"]
            if not (result["task"]["type"] and result["dataset"]["type"] and name and result["metrics"]):
                yield f"a result of {INDEX} says too little: {short(result)}"
            for metric in result["metrics"]:
                if not metric["type"] or isinstance(metric["value"], bool):
                    yield f"a metric of {name} in {INDEX} has no type or no number"
        if not model["name"]:
            yield f"{INDEX} has no name"
    except (KeyError, TypeError) as error:
        yield f"{INDEX} lacks {error}"


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
