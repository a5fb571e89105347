"""The answer in a text that a model wrote, as the study and the authors of each benchmark look for it.

Each function returns None where the text holds no answer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
# What turns a word around, and what may stand between the two: "would not be considered very reasonable".
_NOT = (
    r"(?:\bnot|n['\u2019]t)\s+(?:(?:be|been|seem|sound|believe|consider|considered|find|think|this|that|it|is|to|a|very"
    r"|really|entirely|particularly|necessarily)\s+)*"
)
# "A" in front of a small letter is an article, except in front of these.
_NO_ARTICLE = r"(?!(?<=A)\s+(?!(?:is|because|since|as|and|or|yes|no|maybe)\b)[a-z])"


def first_word(text: str) -> str | None:
    """The first word up to a space or a punctuation mark, without articles (LAMBADA)."""
    word = _PUNCTUATION.split(text.strip().split(" ")[0].split("\n")[0])[0]
    return _ARTICLES.sub("", word).strip() or None


def chain_yes_no(text: str) -> str | None:
    """ "yes" or "no": the first of them after the last "answer is ", in the first paragraph (StrategyQA)."""
    words = text.split("\n\n")[0].rsplit("answer is ", maxsplit=1)[-1].lower()
    found = re.search(r"\b(yes|no)\b", words)
    return found[1] if found else None


def chain_digits(text: str) -> str | None:
    """The digits of the last word that has any, in the first paragraph (GSM8K as the study scores it).

    Only digits are kept: "$1,234." is 1234, but "18.00" is 1800 and "-5" is 5; `chain_number` reads those.
    """
    for word in reversed(text.split("\n\n")[0].split(" ")):
        if any(letter in string.digits for letter in word):
            return "".join(letter for letter in word if letter in string.digits)
    return None


def chain_number(text: str) -> float | None:
    """The last number in the first paragraph, with sign, commas between thousands, and decimals."""
    paragraph = text.split("\n\n")[0].replace("\u2212", "-")
    found = re.findall(r"(?<![\d.])-?\$?\d[\d,]*(?:\.\d+)?|(?<![\d.])-?\$?\.\d+", paragraph)
    return float(found[-1].replace(",", "").replace("$", "")) if found else None


def one_of(text: str, words: Sequence[str]) -> str | None:
    """The first of `words` that stands in the text as a whole word, so that "unreasonable" is not "reasonable".

    The words of the question ("reasonable or unreasonable") are no answer when they are repeated, and "not" in front
    of a word means the other one.
    """
    first, second = (word.lower() for word in words)
    quoted = "[\"'\u201c\u201d\u2018\u2019]?"
    for one, other in ((first, second), (second, first)):
        echo = rf"{quoted}\b{one}\b{quoted}\s*(?:or|/)\s*{quoted}\b{other}\b{quoted}"
        text = re.sub(echo, " ", text, flags=re.I | re.A)
    found = re.search(rf"({_NOT})?\b({first}|{second})\b", text, flags=re.I | re.A)
    if not found:
        return None
    is_first = found[2].lower() == first
    return first if is_first != bool(found[1]) else second


def option_letter(text: str, letters: str = "ABCD") -> str | None:
    """The letter of the option that was chosen: "B", "(B)", "B. no", "The answer is B" (AdvGLUE).

    "A" in front of a small letter is an article, not an answer, except in "A is", "A because" and the like.
    """
    some = f"[{letters}]"
    for pattern in (
        rf"[Aa]nswer(?:\s+is|\s*:)?\s*:?\s*(?:[Oo]ption\s+)?\(?({some})\b{_NO_ARTICLE}",
        rf"^\s*\(?({some})(?:[).:,]|\s*$|\s*\n)",
        rf"\(({some})\)",
        rf"\b[Oo]ption\s+({some})\b",
        rf"(?<![\w'\u2019])({some})\b(?!['\u2019]){_NO_ARTICLE}",
    ):
        if found := re.search(pattern, text, flags=re.A):  # so that a letter after a Chinese one begins a word
            return found[1]
    return None


def last_integer(text: str) -> int | None:
    """The last integer in the text (LongEval lines)."""
    found = re.findall(r"\d+", text)
    return int(found[-1]) if found else None


def normalise(text: str) -> str:
    """Small letters without punctuation, articles and superfluous spaces (SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower())).split())
