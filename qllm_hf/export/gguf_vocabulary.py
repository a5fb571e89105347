"""The vocabulary of a model as llama.cpp keeps it: pieces, their kinds, and how text is cut into them.

llama.cpp does not run a tokenizer.json; it has its own code for each way to cut text, chosen by a name. Only two ways
are certain to be the same, and carried over:

* byte-pair encoding of whole text with byte fallback, as Llama 2 and Mistral have it ("llama"): pieces are joined in
  the order of their merges, which becomes their score;
* byte-level byte-pair encoding with the pattern of GPT-2 ("gpt2").

With any other tokenizer the file has no vocabulary ("none"), and takes and gives numbers of tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..checkpoint import read_object
from ..files import read_text
from ..shown import short

Kind = Literal["llama", "gpt2", "none"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""gguf.TokenType, by number."""
_SPACE_IN_FRONT = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]


def kind_of(folder: Path) -> Kind:
    """How llama.cpp can cut text for the tokenizer in a folder."""
    path = folder / "tokenizer.json"
    stored = read_object(path) if path.is_file() else {}
    model = stored.get("model") or {}
    if model.get("type") != "BPE" or model.get("dropout"):
        return "none"
    normalizer, pre = stored.get("normalizer"), stored.get("pre_tokenizer") or {}
    if model.get("byte_fallback"):
        return "llama" if not pre and (normalizer or {}).get("normalizers") == _SPACE_IN_FRONT else "none"
    is_gpt2 = pre.get("type") == "ByteLevel" and pre.get("use_regex", True) and not pre.get("add_prefix_space")
    return "gpt2" if is_gpt2 and normalizer is None else "none"


def write_vocabulary(writer: Any, folder: Path, size: int, config: dict[str, Any]) -> Kind:
    """Tell a GGUFWriter of the tokenizer in a folder. Returns how text is cut.

    Args:
        size: tokens that the model has; there may be more than the tokenizer knows.
        config: config.json, for the numbers of the special tokens.
    """
    kind = kind_of(folder)
    writer.add_tokenizer_model({"none": "none"}.get(kind, kind))
    if kind == "none":
        return kind
    stored = read_object(folder / "tokenizer.json")
    vocabulary: dict[str, int] = stored["model"]["vocab"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    tokens, kinds = _tokens(stored, vocabulary, size)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if kind == "llama":
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(True)
    else:
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(merges)
    for word in ("bos", "eos", "pad"):
        number = config.get(f"{word}_token_id")
        if isinstance(number, int):
            getattr(writer, f"add_{word}_token_id")(number)
    writer.add_add_bos_token(_begins_with(stored, config.get("bos_token_id")))
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(read_text(template))
    return kind


def _tokens(stored: dict[str, Any], vocabulary: dict[str, int], size: int) -> tuple[list[str], list[int]]:
    """Pieces and their kinds, by number; numbers that stand for nothing get a name that no text has."""
    tokens, kinds = [f"[PAD{number}]" for number in range(size)], [USER_DEFINED] * size
    for token, number in vocabulary.items():
        _check_number(number, token, size)
        tokens[number] = token
        kinds[number] = BYTE if len(token) == 6 and token.startswith("<0x") and token.endswith(">") else NORMAL
    for added in stored.get("added_tokens", ()):
        _check_number(added["id"], added["content"], size)
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = stored["model"].get("unk_token")
    if unknown is not None and unknown in vocabulary:
        kinds[vocabulary[unknown]] = UNKNOWN
    return tokens, kinds


def _check_number(number: Any, token: Any, size: int) -> None:
    if type(number) is not int or not 0 <= number < size or not isinstance(token, str):
        raise ValueError(f"{short(token)} has the number {short(number)}, and the model has {size} tokens")


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """The place of the merge that makes each piece, below 0: llama.cpp joins what scores highest first."""
    place: dict[str, int] = {}
    for number, merge in enumerate(merges):
        place.setdefault(merge.replace(" ", ""), number + 1)
    return [-float(place.get(token, 0)) for token in tokens]


def _begins_with(stored: dict[str, Any], number: Any) -> bool:
    """Whether the tokenizer puts the first token in front of a text."""
    single = (stored.get("post_processor") or {}).get("single") or [{}]
    special = single[0].get("SpecialToken", {}).get("id")
    known = (stored.get("post_processor") or {}).get("special_tokens") or {}
    return special is not None and number in known.get(special, {}).get("ids", ())
