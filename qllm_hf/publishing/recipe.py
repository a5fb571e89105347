"""What `qllm-hf quantize` leaves beside the weights, so that a card can say later how they were made.

DIR/qllm_recipe.json   base model, its commit or a digest of its files, the command, versions
DIR/LICENSE, NOTICE    of the base model: they hold for its quantized form as well

Only names are kept of folders, never whole paths: the file is published with the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ..builtin import BUILTIN
from ..errors import CheckpointError
from ..evaluation.provenance import versions
from ..files import read_bytes, read_text
from ..loading import local_folder
from ..revision import revision_of
from ..shown import printable, short, short_text
from ..strict_json import parse_object
from ..typed import made_of
from .frontmatter import CARD, INHERITED, read_card
from .problems import PublishError

RECIPE: Final = "qllm_recipe.json"
FORMAT: Final = 1
LEGAL: Final = {"LICENSE": "LICENSE", "LICENSE.txt": "LICENSE", "LICENSE.md": "LICENSE", "NOTICE": "NOTICE",
                "NOTICE.txt": "NOTICE"}  # fmt: skip
"""Names of legal texts, and the name under which they go on."""
Kind = Literal["hub", "built-in", "folder"]


@dataclass(frozen=True)
class Recipe:
    """How a folder of quantized weights was made.

    Attributes:
        base: an id on the Hub, the name of a built-in model, or the name of a folder.
        kind: which of these `base` is.
        revision: commit on the Hub, or a digest of the files.
        card: what the base model's card says of `INHERITED`; {} for a model on the Hub, whose card is there.
        command: the words of the command.
        versions: of the libraries.
    """

    base: str
    kind: Kind
    revision: str
    card: dict[str, Any]
    command: tuple[str, ...]
    versions: dict[str, str]


def recipe_files(model: str, loaded: Any, command: Sequence[str]) -> dict[str, bytes]:
    """{name: content} of what is to lie beside the weights of `loaded`, which was quantized from `model`."""
    folder = local_folder(model)
    kind: Kind = "hub" if folder is None else "built-in" if model in BUILTIN else "folder"
    recipe = Recipe(
        base=folder.resolve().name if folder is not None and kind == "folder" else model,
        kind=kind,
        revision=revision_of(model, loaded),
        card={} if folder is None else inherited(folder),
        command=tuple(command),
        versions=versions(),
    )
    text = json.dumps({"format": FORMAT, **asdict(recipe)}, indent=2, ensure_ascii=False) + "\n"
    return {RECIPE: text.encode("utf-8"), **({} if folder is None else legal_texts(folder))}


def read_recipe(folder: Path) -> Recipe | None:
    """What the folder says of how it was made; None if it says nothing.

    Raises:
        CheckpointError: the file is damaged, or of a newer version.
    """
    path = folder / RECIPE
    if not path.is_file():
        return None
    try:
        stored = parse_object(read_bytes(path))
        if stored.pop("format") > FORMAT:
            raise CheckpointError(f"{path} was written by a newer qllm_hf. Run: pip install --upgrade qllm-hf")
        recipe = made_of(Recipe, {**stored, "command": tuple(stored["command"])})
        _check(recipe)
        return recipe
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged ({short_text(str(error))}). Delete it, or quantize again.") from None


def _check(recipe: Recipe) -> None:
    """Raises ValueError if a card could not show this: a line feed would end the block that a command stands in."""
    texts = [recipe.base, *recipe.command, *recipe.versions, *recipe.versions.values()]
    hidden = next((text for text in texts if printable(text) != text or "\n" in text), None)
    if hidden is not None:
        raise ValueError(f"{short(hidden)} holds control characters")
    if not re.fullmatch(r"[\w:.-]*", recipe.revision, re.ASCII):
        raise ValueError(f"revision={short(recipe.revision)}")


def inherited(folder: Path) -> dict[str, Any]:
    """What the card in a model folder says that holds for the quantized model too; {} if it cannot be read.

    A damaged card is no reason to fail: this is asked when a model was quantized, after hours of work.
    """
    try:
        return keep_inherited(read_card(read_text(folder / CARD)).front)
    except (OSError, CheckpointError, PublishError):
        return {}


def keep_inherited(front: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a base model's card that hold for its quantized form: words and lists of words."""
    found = {key: _words(front.get(key)) for key in INHERITED}
    return {key: value for key, value in found.items() if value}


def _words(value: Any) -> Any:
    """A word or a list of words, else None. YAML reads the language "no" (Norwegian) as False."""
    if isinstance(value, list):
        return [word for each in value if (word := _words(each))]
    return "no" if value is False else value if isinstance(value, str) else None


def legal_texts(folder: Path) -> dict[str, bytes]:
    """{name: content} of the legal texts in a model folder."""
    found: dict[str, bytes] = {}
    for name, target in LEGAL.items():
        if target not in found and (folder / name).is_file():
            found[target] = (folder / name).read_bytes()
    return found
