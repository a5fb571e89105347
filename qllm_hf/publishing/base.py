"""The model that a quantized one was made from: its name, its licence, and what else its card hands down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..builtin import BUILTIN
from ..loading import local_folder
from ..revision import revision_of
from .frontmatter import CARD, read_card
from .hub import explained, hub_api, retried
from .problems import PublishError
from .quantized import Quantized
from .recipe import LEGAL, inherited, keep_inherited, legal_texts


@dataclass(frozen=True)
class Base:
    """The base model of a card.

    Attributes:
        name: as the text says it.
        id: on the Hub; None if it is not there.
        revision: commit, or digest of the files; "" if unknown.
        card: what its card hands down.
        legal: {name: content} of licence texts that go with the model.
        notes: what the user should know.
    """

    name: str
    id: str | None
    revision: str
    card: Mapping[str, Any]
    legal: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


def find_base(model: Quantized, given: str | None, *, has_licence: bool) -> Base:
    """The base model of a quantized one: what the user says, or what the folder says.

    Args:
        given: a folder, a built-in model, or an id on the Hub.
        has_licence: the user said the licence, so a card on the Hub that cannot be read is no obstacle.

    Raises:
        PublishError: nobody says what the base is, it is another one, or its card cannot be read.
    """
    recipe, own = model.recipe, legal_texts(model.folder)
    if given is None and recipe is None:
        raise PublishError(
            f"{model.name!r} does not say which model it was made from: it was quantized before qllm_hf wrote that "
            "down. Say it: --base-model owner/name, or the folder of the float model."
        )
    name = given if given is not None else recipe.base if recipe is not None else ""
    if given is not None and (folder := local_folder(given)) is not None:
        return _from_folder(model, given, folder)
    if given is None and recipe is not None and recipe.kind != "hub":
        notes = () if recipe.kind == "built-in" else (_NO_ID.format(recipe.base),)
        return Base(recipe.base, None, recipe.revision, recipe.card, own, notes)
    is_recipe = recipe is not None and recipe.kind == "hub" and recipe.base == name
    revision = recipe.revision if recipe is not None else ""
    handed_down: Mapping[str, Any] = {} if recipe is None else recipe.card
    try:
        card, legal = _from_hub(name, (revision or None) if is_recipe else None)
    except PublishError as error:
        if not has_licence and not handed_down.get("license"):
            raise PublishError(f"{error} Or say its licence yourself: --license ID.") from error
        return Base(name, name, revision, handed_down, own, (f"the card of {name} was not read: {error}",))
    return Base(name, name, revision, {**handed_down, **card}, {**own, **legal})


_NO_ID = (
    "the base model is the folder {!r}, so the card names no base_model. If it is on the Hub too, say its id: "
    "--base-model owner/name"
)


def _from_folder(model: Quantized, given: str, folder: Path) -> Base:
    revision = revision_of(str(folder), None)
    if model.recipe is not None and model.recipe.kind != "hub" and model.recipe.revision != revision:
        raise PublishError(
            f"{given!r} has the revision {revision}, and {model.name!r} was made from {model.recipe.base!r} with "
            f"{model.recipe.revision}. Give the model that it was made from."
        )
    name = given if given in BUILTIN else folder.resolve().name
    notes = () if given in BUILTIN else (_NO_ID.format(name),)
    return Base(name, None, revision, inherited(folder), {**legal_texts(model.folder), **legal_texts(folder)}, notes)


def _from_hub(repo: str, revision: str | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the card of a model on the Hub hands down, and its legal texts."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    api = hub_api()

    def content(name: str) -> bytes | None:
        try:
            return Path(retried(api.hf_hub_download, repo, name, revision=revision)).read_bytes()
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            return None

    with explained("the base model", repo):
        found = content(CARD)
        there = read_card("" if found is None else found.decode("utf-8", "replace"), f"{CARD} of {repo}")
        card = keep_inherited(there.front)
        names = {file.rfilename for file in retried(api.model_info, repo, revision=revision).siblings or ()}
        legal: dict[str, bytes] = {}
        for name, target in LEGAL.items():
            if name in names and target not in legal and (text := content(name)) is not None:
                legal[target] = text
        return card, legal
