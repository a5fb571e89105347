"""The model card of a quantized model, and the files that belong to it.

DIR/README.md                     the card
DIR/LICENSE                       of the base model
DIR/.eval_results/TASK.yaml       scores for the leaderboards of the Hub
DIR/qllm_results/records.jsonl    every score with where it comes from
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..files import read_text
from ..scheme import FLOAT_BITS
from ..whole import write_whole
from .base import Base, find_base
from .benchmarks import leaderboard_files
from .frontmatter import CARD, INDEX, Card, check_front, read_card, write_card
from .licences import choose_licence
from .measured import EVIDENCE, Measured, evidence, read_measured
from .merge import BEGIN, END, merge_cards
from .model_index import TASK_TYPE, model_index
from .quantized import Quantized
from .sections import sections

LIBRARY: Final = "transformers"
RELATION: Final = "quantized"
_PLACE: Final = re.compile(r"\{\{(\w+)\}\}")
_TEMPLATE: Final = Path(__file__).with_name("card.md")


@dataclass(frozen=True)
class MadeCard:
    """A card and what belongs to it.

    Attributes:
        card: its parts.
        text: README.md.
        others: {path in the folder: content} of the other files.
        notes: what the user should know.
    """

    card: Card
    text: str
    others: Mapping[str, bytes]
    notes: tuple[str, ...]


def make_card(
    model: Quantized,
    *,
    results: str | Path | None = None,
    base_model: str | None = None,
    licence: Mapping[str, str | None] | None = None,
    repo: str | None = None,
    existing: Path | None = None,
) -> MadeCard:
    """The card of a quantized model. The same folder and results give the same bytes.

    Args:
        results: a folder of `qllm-hf sweep` or `evaluate -o`.
        base_model: an id on the Hub, or a folder; by default what the folder says it was made from.
        licence: {"license", "license_name", "license_link"}, where the base model's card does not say it.
        repo: the id that it will have on the Hub; by default the example names the folder.
        existing: file of a card that is there, perhaps; what a person wrote on it stays.

    Raises:
        PublishError: the base model or its licence is not known, or the results are of something else.
        CheckpointError: the results cannot be read.
    """
    given = {key: value for key, value in (licence or {}).items() if value}
    base = find_base(model, base_model, has_licence="license" in given)
    chosen = choose_licence(repr(base.name), base.card, given, has_text="LICENSE" in base.legal)
    measured = None if results is None else read_measured(results, model, base)
    name = repo or model.name
    front = _front(model, base, chosen, measured, name.rpartition("/")[2])
    check_front(front)
    ours = Card(front, f"\n{BEGIN}\n{_filled(sections(model, base, measured, name))}\n{END}\n")
    # scores that an earlier card of this folder had are in these results, or gone
    there = Card({}, "")
    if existing is not None and existing.is_file():
        there = read_card(read_text(existing), repr(str(existing)))
    card = merge_cards(there, ours, "", name.rpartition("/")[2])
    others = dict(base.legal)
    if measured is not None:
        others |= {**leaderboard_files(measured.records), EVIDENCE: evidence(measured)}
    return MadeCard(card, write_card(card), others, base.notes)


def save_card(made: MadeCard, model: Quantized) -> tuple[Path, ...]:
    """The files that were written into the model's folder; each is there whole, or as it was before."""
    contents = {**made.others, CARD: made.text.encode("utf-8")}
    written = []
    for name, content in contents.items():
        path = model.folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_whole(path, content)
        written.append(path)
    return tuple(written)


def _front(
    model: Quantized, base: Base, licence: Mapping[str, str], measured: Measured | None, name: str
) -> dict[str, Any]:
    values: dict[str, Any] = {"language": base.card.get("language"), **licence}
    values |= {"library_name": LIBRARY, "pipeline_tag": TASK_TYPE}
    if base.id is not None:
        values |= {"base_model": base.id, "base_model_relation": RELATION}
    values |= {"datasets": base.card.get("datasets"), "tags": _tags(model)}
    if measured is not None:
        values[INDEX] = model_index(measured.records, name, model.digest)
    return {key: value for key, value in values.items() if value}


def _tags(model: Quantized) -> list[str]:
    scheme = model.config.scheme
    tags = ["qllm_hf", "quantized"]
    for letter, bits in (("w", scheme.w), ("a", scheme.a), ("kv", scheme.kv)):
        if bits < FLOAT_BITS:
            tags.append(f"{letter}{bits}")
    if scheme.w < FLOAT_BITS:
        tags.append(f"{scheme.w}-bit")
    if scheme.kv < FLOAT_BITS:
        tags.append("kv-cache")
    return tags


def _filled(values: Mapping[str, str]) -> str:
    """The template with its places filled; a section whose places are all empty is left out with its heading."""
    parts = re.split(r"(?m)^(?=## )", _TEMPLATE.read_text(encoding="utf-8"))
    kept = [part for part in parts if any(values[place] for place in _PLACE.findall(part))]
    return _PLACE.sub(lambda match: values[match[1]], "".join(kept)).strip()
