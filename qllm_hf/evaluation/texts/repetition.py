"""How a text fails: sentences again and again, words again and again, or signs without meaning.

The study saw repeated sentences and meaningless symbols at W3 and KV3, and repeated or random words at W2, W4A4 and
KV2 (section 6, on dialogue). A score says that an answer got worse; this says in which of these ways.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ...errors import QllmError

VERDICTS: Final = ("fine", "empty", "garbage", "sentence repetition", "token repetition")
# What a measure has to reach. In books, articles, abstracts, answers and code it stays below; the tests measure that.
THRESHOLD: Final = 0.25

_LONGEST_NGRAM: Final = 8
_MORE_TIMES: Final = 3

_EAST_ASIAN: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# A syllable four times or more (GGGG, damdamdamdam) is what a repeated token looks like when it starts no new word.
_STUTTER: Final = re.compile(r"([^\W\d_]{1,4}?)\1{3,}")
_WORD: Final = re.compile(rf"[{_EAST_ASIAN}]|[^\W_{_EAST_ASIAN}]+(?:['\u2019][^\W_{_EAST_ASIAN}]+)*")
_FENCED: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_ITEM: Final = re.compile(r"\s*(?:[-*•+|]|\(?(?:\d{1,3}|[a-zA-Z])[.):])\s+(?=\S)")
_CLOSING: Final = "[\"'\u2019\u201d\u300d\u300f\uff09)\\]]*"
_FULL_WIDTH_ENDS: Final = "\u3002\uff01\uff1f"
_END: Final = re.compile(rf"(?<=[.!?\u2026]){_CLOSING}\s+|(?<=[{_FULL_WIDTH_ENDS}]){_CLOSING}")
_ENDS: Final = re.compile(rf"[.!?\u2026{_FULL_WIDTH_ENDS}]{_CLOSING}$")
_CODE_SIGNS: Final = re.compile(r"[{}<>=;|\\_\[\]()#$]")
_CODE_SHARE: Final = 0.12

# U+2047 is how sentencepiece spells a token that it does not know.
_BROKEN: Final = re.compile(r"[\ufffd\u2047]")
_BROKEN_KINDS: Final = frozenset({"Cc", "Cn", "Co", "Cs"})
# Chinese puts no spaces between words, so a chunk ends there too, and at its punctuation.
_CHUNK: Final = re.compile(rf"[^\s{_EAST_ASIAN}\u3000-\u303f\uff00-\uffef]+")
_SIGNS: Final = re.compile(r"[^\w\s](?:\s*[^\w\s]){5,}")
_LINE: Final = re.compile(r"([-=_*.#~+─·])\1{1,99}")
_ADDRESS: Final = re.compile(r"\w+://|www\.|[\w.+-]+@[\w-]+\.\w|[0-9a-fA-F-]{8,}\W*$")
_FORMULA: Final = re.compile(r"(?:[A-Z][a-z]?\d*|[()])+")
_ODD_INSIDE: Final = re.compile(r"(?<=[^\W\d_])[#$%@^~&§¶¤¬¦°±](?=[^\W\d_])")
_ALPHANUMERIC: Final = re.compile(r"[^\W_]+")
_SWITCH: Final = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_MANY_SWITCHES: Final = 4
# Scripts that stand beside each other in ordinary writing, within a word too.
_MIXES_FREELY: Final = frozenset({"LATIN", "GREEK", "HANGUL", "FEMININE", "MASCULINE", "MICRO", "MODIFIER"})


@dataclass(frozen=True)
class Condition:
    """What `look_at` saw in one text.

    | measure | share of | counted |
    |---|---|---|
    | `sentence_repetition` | sentences | those that an earlier one equals, but for case and punctuation |
    | `token_repetition` | words | those in a run: 1 to 8 words, and at once the same words 3 more times or oftener |
    | `garbage` | characters that are no white space | those that `look_at` calls garbage |

    `is_empty` says that the text holds nothing but white space; all measures are 0 then.
    """

    sentence_repetition: float
    token_repetition: float
    garbage: float
    is_empty: bool = False

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`: the first that holds, in this order.

        | verdict | from |
        |---|---|
        | "empty" | nothing but white space |
        | "garbage" | `garbage` 0.25: what the other measures count in such a text means little |
        | "sentence repetition" | `sentence_repetition` 0.25: a short sentence over and over is a run of words as well |
        | "token repetition" | `token_repetition` 0.25 |
        | "fine" | otherwise |
        """
        if self.is_empty:
            return "empty"
        if self.garbage >= THRESHOLD:
            return "garbage"
        if self.sentence_repetition >= THRESHOLD:
            return "sentence repetition"
        return "token repetition" if self.token_repetition >= THRESHOLD else "fine"


def look_at(text: str) -> Condition:
    """The condition of one text, in shares from 0 to 1. No language is assumed, and no word list is used.

    *Sentences* end with . ! ? before a space, with the full-width marks of Chinese anywhere, or with the line. They
    have 3 words or more, 4 in Chinese. A list item is one sentence, whatever it holds: in lists, parts of items repeat
    in good writing. A line that ends without a mark is a sentence only if it has more than 8 words, so headings and
    short items are none; when they repeat at once, they are runs of words. Code (fenced, or a line full of brackets)
    has no sentences.

    *Words* are letters and digits between anything else; each Chinese or Japanese character is one. A syllable of up
    to 4 letters that repeats 4 times or more inside a word counts as that many words.

    *Garbage*, outside of fenced code, is: control characters and characters that no font shows; U+FFFD; 6 signs or
    more in a row, unless they draw a line; words that change between letters and digits 4 times or more, unless they
    are hexadecimal or a chemical formula; words with 2 or more of #$%@^~& between letters; words that mix scripts
    (other than Latin, Greek and Chinese ones), and words whose script is neither that of the word before nor after.

    It cannot see random words of one script, whether they exist or not: that needs a model of the language. Two
    languages alternating word by word in two scripts look like garbage, and code without a fence can.
    """
    if not text.strip():
        return Condition(0.0, 0.0, 0.0, is_empty=True)
    return Condition(_sentence_repetition(text), _token_repetition(text), _garbage(text))


def condition_rates(texts: Iterable[str]) -> dict[str, float]:
    """The share of texts with each verdict, all of `VERDICTS` in that order; they sum to 1.

    Raises:
        QllmError: there are no texts.
    """
    counts = Counter(look_at(text).verdict for text in texts)
    if not counts:
        raise QllmError("condition_rates was given no texts. Give at least one.")
    return {verdict: counts[verdict] / counts.total() for verdict in VERDICTS}


def _words(text: str) -> list[str]:
    spread = _STUTTER.sub(lambda run: " " + " ".join([run[1]] * (len(run[0]) // len(run[1]))) + " ", text.casefold())
    return _WORD.findall(spread)


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a text as comparable strings: words in lower case, single spaces."""
    for line in _FENCED.sub("\n", text).splitlines():
        item = _ITEM.match(line)
        parts = [line[item.end() :]] if item else _END.split(line)
        for part in parts:
            dense = re.sub(r"\s", "", part)
            words = _WORD.findall(part.casefold())
            shortest = 4 if words and re.match(f"[{_EAST_ASIAN}]", words[0]) else 3
            if not _ENDS.search(part.rstrip()):
                shortest = _LONGEST_NGRAM + 1
            if len(words) >= shortest and len(_CODE_SIGNS.findall(dense)) <= _CODE_SHARE * len(dense):
                yield " ".join(words)


def _sentence_repetition(text: str) -> float:
    sentences = list(_sentences(text))
    return 1 - len(set(sentences)) / len(sentences) if sentences else 0.0


def _token_repetition(text: str) -> float:
    words = _words(text)
    in_run = [False] * len(words)
    for size in range(1, _LONGEST_NGRAM + 1):
        same = 0  # words in a row, up to the present one, that equal the word `size` before
        for end in range(size, len(words) + 1):
            if end < len(words) and words[end] == words[end - size]:
                same += 1
                continue
            if same >= _MORE_TIMES * size:
                in_run[end - same - size : end] = [True] * (same + size)
            same = 0
    return sum(in_run) / len(words) if words else 0.0


def _garbage(text: str) -> float:
    prose = _FENCED.sub("\n", text)
    odd = [
        bool(_BROKEN.match(char)) or (unicodedata.category(char) in _BROKEN_KINDS and not char.isspace())
        for char in prose
    ]

    def mark(start: int, end: int) -> None:
        odd[start:end] = [True] * (end - start)

    for signs in _SIGNS.finditer(prose):
        if not _LINE.fullmatch(signs[0]):
            mark(*signs.span())
    chunks = list(_CHUNK.finditer(prose))
    scripts = [_scripts(chunk[0]) for chunk in chunks]
    for index, chunk in enumerate(chunks):
        if _is_salad(chunk[0], scripts[index]):
            mark(*chunk.span())
    for before, here, after in zip(range(len(chunks)), range(1, len(chunks)), range(2, len(chunks)), strict=False):
        beside = scripts[before] | scripts[after]
        is_alone = scripts[before] and scripts[here] and scripts[after] and not beside & scripts[here]
        gaps = prose[chunks[before].end() : chunks[here].start()], prose[chunks[here].end() : chunks[after].start()]
        if is_alone and not beside | scripts[here] <= _MIXES_FREELY and all(gap == " " for gap in gaps):
            mark(*chunks[here].span())
    visible = [is_odd for char, is_odd in zip(prose, odd, strict=True) if not char.isspace()]
    return sum(visible) / len(visible) if visible else 0.0


def _is_salad(chunk: str, scripts: frozenset[str]) -> bool:
    """Whether letters, digits, signs or scripts are mixed in this word as nobody writes them."""
    if _ADDRESS.search(chunk):
        return False
    if len(scripts) > 1 and not scripts <= _MIXES_FREELY:
        return True
    if len(_ODD_INSIDE.findall(chunk)) > 1:
        return True
    return any(
        len(_SWITCH.findall(run)) >= _MANY_SWITCHES and not _FORMULA.fullmatch(run)
        for run in _ALPHANUMERIC.findall(chunk)
    )


def _scripts(chunk: str) -> frozenset[str]:
    if chunk.isascii():
        return frozenset({"LATIN"}) if any(char.isalpha() for char in chunk) else frozenset()
    return frozenset(unicodedata.name(char, "UNKNOWN").split()[0] for char in chunk if char.isalpha())
