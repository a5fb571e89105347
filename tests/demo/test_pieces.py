"""Tokens as text, and what two answers do not share."""

import pytest

from qllm_hf.demo.pieces import Pieces, not_shared
from qllm_hf.loading import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("reference")


@pytest.mark.parametrize("text", ["Once upon a time there was a dog.", "Mia: 27+8-5+4=?\n\n  Two   spaces. " * 9])
def test_pieces_add_up_to_the_text(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer)
    for token in ids:
        pieces.add(token)
    assert "".join(pieces.texts) == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(pieces.texts) == len(ids)


class Bytes:
    """A tokenizer whose tokens are bytes of UTF-8."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_comes_whole():
    pieces = Pieces(Bytes())
    added = [pieces.add(token) for token in "a€b".encode()]
    assert added == ["a", "", "", "€", "b"]


@pytest.mark.parametrize(
    ("left", "right", "marks"),
    [
        ([], [], ([], [])),
        ([1, 2], [1, 2], ([False, False], [False, False])),
        ([1, 2], [3], ([True, True], [True])),
        ([1, 5, 2, 3], [1, 2, 3, 4], ([False, True, False, False], [False, False, False, True])),
    ],
)
def test_tokens_are_put_in_a_common_order(left, right, marks):
    assert not_shared(left, right) == marks
