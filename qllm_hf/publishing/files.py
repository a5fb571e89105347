"""Which files of a folder go to the Hub: those that belong to a quantized model. All others stay, and are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ..checkpoint import INDEX
from ..evaluation.lines import read_lines
from ..files import read_text
from .benchmarks import FOLDER
from .card import MadeCard, make_card
from .frontmatter import CARD
from .merge import section
from .problems import PublishError
from .quantized import Quantized
from .recipe import RECIPE

ALLOWED: Final = (
    INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    CARD,
    "LICENSE",
    "NOTICE",
    RECIPE,
    f"{FOLDER}/*.yaml",
    "figures/*.svg",
    "figures/*.png",
    "figures/*.csv",
    "qllm_results/*.jsonl",
)
"""Files of weights are not in this table: those that config.json and the index describe go, and no others."""
Content = Path | bytes


@dataclass(frozen=True)
class Package:
    """What of a folder goes to the Hub.

    Attributes:
        contents: {path in the repository: the file, or what it holds}.
        left_out: files that stay.
        notes: what the user should know.
    """

    contents: Mapping[str, Content]
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()


def pack(model: Quantized, repo: str, results: str | Path | None) -> Package:
    """The files of a quantized model with its card, which is made if there is none or if there are new results.

    Raises:
        PublishError: the card is of other weights, cannot be made, or weights are links to elsewhere.
    """
    contents, left_out = _choose(model)
    path = model.folder / CARD
    if path.is_symlink():
        raise PublishError(
            f"{path} is a link to elsewhere, and only what is in the folder is sent. Put the file there."
        )
    for name, content in contents.items():
        if name.endswith(".jsonl") and isinstance(content, Path):
            read_lines(content, strict=True)
    own = section(read_text(path) if path.is_file() else "")
    if results is None and own:
        _check_weights(own, model)
        return Package(contents, left_out)
    made: MadeCard = make_card(model, results=results, repo=repo, existing=path)
    return Package({**contents, **made.others, CARD: made.text.encode("utf-8")}, left_out, made.notes)


def _choose(model: Quantized) -> tuple[dict[str, Content], tuple[str, ...]]:
    weights = {file.name for file in model.weights}
    chosen: dict[str, Content] = {}
    left_out = []
    for path in sorted(model.folder.rglob("*")):
        name = path.relative_to(model.folder).as_posix()
        is_ours = name in weights or any(_matches(name, pattern) for pattern in ALLOWED)
        if path.is_symlink() or (path.is_file() and not is_ours):
            left_out.append(name)
        elif path.is_file():
            chosen[name] = path
    if linked := sorted(weights - chosen.keys()):
        raise PublishError(f"{linked[0]} is a link to a file elsewhere. Copy the weights into {str(model.folder)!r}.")
    return chosen, tuple(left_out)


def _matches(name: str, pattern: str) -> bool:
    """Whether a path has a pattern's form; * stands for no slash."""
    return fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")


def _check_weights(card: str, model: Quantized) -> None:
    for file in model.weights:
        if file.sha256 not in card:
            raise PublishError(
                f"the card in {str(model.folder)!r} is of other weights: it does not have the SHA-256 of {file.name}. "
                f"Make it again: qllm-hf card {model.folder}"
            )
