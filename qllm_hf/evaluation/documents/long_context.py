"""Long context: LongEval lines and topics, key-value retrieval, questions about many documents (section 2.5)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from random import Random
from typing import Final

from ...curriculum.words import QUALITIES, THINGS
from ..task import Document, Row
from .document import written

BINS: Final = 10
_HEAD: Final = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its "
    "corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding "
    "<REGISTER_CONTENT> of a certain line index. Now the record start:\n\n"
)


def lines(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """What a line of a long record holds, with the place of the line in tenths of the record."""
    return [
        written(row["prompt"], [str(row["expected_number"])], group=_tenth(*_place(row)), lines=str(row["num_lines"]))
        for row in rows
    ]


def generate_lines(number: int, rows: int, seed: int = 0) -> list[Row]:
    """Rows of LongEval's form with `number` lines, named by two or more words, from a seed."""
    rng = Random(f"lines {number} {seed}")
    made: list[Row] = []
    for _ in range(rows):
        names: dict[str, int] = {}
        while len(names) < number:
            name = f"{rng.choice(QUALITIES)}-{rng.choice(THINGS)}"
            while name in names:
                name = f"{rng.choice(QUALITIES)}-{name}"
            names[name] = rng.randint(1, 50_000)
        asked = rng.choice(list(names))
        record = "".join(f"line {name}: REGISTER_CONTENT is <{value}>\n" for name, value in names.items())
        made.append(
            {
                "prompt": f"{_HEAD}{record}\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line "
                f"{asked}? I need the number. ",
                "expected_number": names[asked],
                "num_lines": number,
                "random_idx": [asked, list(names).index(asked)],
            }
        )
    return made


def _place(row: Row) -> tuple[int, int]:
    """(which line was asked, of how many)."""
    return int(row["random_idx"][1]), int(row["num_lines"])


def topics(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """The first topic of a long conversation, by the number of topics."""
    return [written(row["prompt"], [row["topics"][0]], group=f"{len(row['topics']):02d} topics") for row in rows]


def key_value(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """The value of a key in a long JSON object, by the place of the key."""
    documents = []
    for row in rows:
        record = json.dumps(dict(row["ordered_kv_records"]), indent=1)
        keys = [key for key, _ in row["ordered_kv_records"]]
        documents.append(
            written(
                f"Extract the value corresponding to the specified key in the JSON object below.\n\n"
                f'JSON data:\n{record}\n\nKey: "{row["key"]}"\nCorresponding value:',
                [row["value"]],
                group=_tenth(keys.index(row["key"]), len(keys)),
            )
        )
    return documents


def generate_key_value(number: int, rows: int, seed: int = 0) -> list[Row]:
    """Rows of the authors' form: `number` random identifiers, each with another one as its value."""
    rng = Random(f"key-value {number} {seed}")

    def identifier() -> str:
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    made: list[Row] = []
    for _ in range(rows):
        records = [[identifier(), identifier()] for _ in range(number)]
        key, value = rng.choice(records)
        made.append({"ordered_kv_records": records, "key": key, "value": value, "num_keys": number})
    return made


def documents_qa(rows: Sequence[Row], shots: Sequence[Row]) -> list[Document]:
    """A question and many documents, one of which answers it, by the place of that one."""
    documents = []
    for row in rows:
        found = "\n".join(
            f"Document [{number}](Title: {page['title']}) {page['text']}" for number, page in enumerate(row["ctxs"], 1)
        )
        gold = row.get("gold_index", next((place for place, page in enumerate(row["ctxs"]) if page.get("isgold")), 0))
        documents.append(
            written(
                "Write a high-quality answer for the given question using only the provided search results (some of "
                f"which might be irrelevant).\n\n{found}\n\nQuestion: {row['question']}\nAnswer:",
                row["answers"],
                group=f"{len(row['ctxs']):02d} documents, at {int(gold):02d}",
            )
        )
    return documents


def _tenth(place: int, length: int) -> str:
    """Which tenth of the whole a place lies in: "position 01" to "position 10"."""
    return f"position {place * BINS // length + 1:02d}"
