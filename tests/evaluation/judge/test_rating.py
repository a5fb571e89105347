"""Which number in a judgement is the rating: a table, and what holds for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.evaluation.judge.rating import UNPARSED, parse_rating


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", UNPARSED),
        ("[[7]]", 7.0),
        ("[[7.5]]", 7.5),
        ("[[7.]]", 7.0),
        ("[[1]]", 1.0),
        ("[[10]]", 10.0),
        ("[[10.0]]", 10.0),
        ("Rating: [[8]]", 8.0),
        ("Short, but right.\n\nRating: [[8]]\n", 8.0),
        ("[[7]] or rather [[9]]", 7.0),
        ("[[7]] [[7]]", 7.0),
        ("see [3]; Rating: [[8]]", 8.0),
        ("[8]", 8.0),
        ("Rating: [8.5], not [9]", 8.5),
        ("回答很好。评分[[9]]", 9.0),
        ("回答很好。评分9", UNPARSED),
        ("I rate it 7", UNPARSED),
        ("Rating: 7/10", UNPARSED),
        ("[[7/10]]", UNPARSED),
        ("[[rating]]", UNPARSED),
        ("[[-3]]", UNPARSED),
        # outside the scale: nothing else is tried
        ("[[11]]", UNPARSED),
        ("[[0]]", UNPARSED),
        ("[[0.9]]", UNPARSED),
        ("[[10.1]]", UNPARSED),
        ("[[11]], that is [[10]]", UNPARSED),
        ("[[11]] [5]", UNPARSED),
        ("[[" + "9" * 5000 + "]]", UNPARSED),
    ],
)
def test_table(text, score):
    assert parse_rating(text) == score


@given(st.text())
def test_any_text_is_on_the_scale_or_dropped(text):
    score = parse_rating(text)
    assert score == UNPARSED or 1 <= score <= 10


# no bracket before the rating: the first one counts
@given(st.text(st.characters(exclude_characters="[")), st.integers(10, 100), st.text())
def test_rating_is_found_in_any_surroundings(before, tenths, after):
    assert parse_rating(f"{before}[[{tenths / 10}]]{after}") == tenths / 10
