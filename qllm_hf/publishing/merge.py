"""Two cards become one: what a person wrote stays, what we wrote is replaced.

text of a person
<!-- qllm_hf -->
ours, from beginning to end
<!-- /qllm_hf -->
text of a person
"""

from __future__ import annotations

import re
from typing import Final

from .frontmatter import INDEX, Card, merge_front
from .model_index import index_of, merge_index

BEGIN: Final = "<!-- qllm_hf -->"
END: Final = "<!-- /qllm_hf -->"
_SECTION: Final = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.S)


def section(text: str) -> str:
    """Our part of a card's text as it stands there, or ""."""
    match = _SECTION.search(text)
    return match[0] if match else ""


def merge_cards(there: Card, ours: Card, weights: str, name: str) -> Card:
    """The card that is there, with our part replaced: its text outside the markers and its other keys stay.

    A card without markers keeps all of its text, and ours follows.
    """
    new = section(ours.text)
    if _SECTION.search(there.text):
        text = _SECTION.sub(lambda _: new, there.text, count=1)
    else:
        above = there.text.strip()
        text = f"{above}\n\n{new}\n" if above else f"{new}\n"
    front = merge_front(there.front, ours.front)
    index = merge_index(index_of(there.front), index_of(ours.front) or [], weights, name)
    return Card({**front, INDEX: index} if index else front, text)
