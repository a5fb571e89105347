"""Which module names a pattern means."""

import pytest

from qllm_hf.patterns import first_match, matches

NAME = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        NAME,
        "down_proj",
        "mlp",
        "layers.1",
        "1.mlp",
        "model.layers.1.mlp",
        ".layers.1.",
        "*.down_proj",
        "*down_proj",
        "model.layers.1.*",
        "model.layers.[01].*",
        "model.layers.?.mlp",
        "*.mlp",
        "*",
        "model.*.down_proj",
        "model.layers.[!0]",
    ],
)
def test_meant(pattern):
    assert matches(NAME, pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "down",
        "proj",
        "layers.11",
        "layer",
        "ayers.1",
        "layers.mlp",
        "MLP",
        "*.Down_proj",
        "down_proj.weight",
        "layers.1*.up_proj",
        "mlp.*",
        "layers.*",
        "model.layers.[!1].*",
        "model.layers.0.*",
        "",
        ".",
    ],
)
def test_not_meant(pattern):
    assert not matches(NAME, pattern)


def test_numbers_are_whole_words():
    eleven = "model.layers.11.mlp.down_proj"
    assert not matches(eleven, "layers.1")
    assert not matches(eleven, "model.layers.1.*")
    assert not matches(eleven, "model.layers.[01].*")
    assert not matches(eleven, "*.1")
    assert matches(eleven, "layers.11")


def test_first_match_in_the_order_given():
    assert first_match(NAME, ["up_proj", "*.mlp", "down_proj"]) == "*.mlp"
    assert first_match(NAME, ["down_proj", "*.mlp"]) == "down_proj"
    assert first_match(NAME, ["up_proj", "layers.2"]) is None
    assert first_match(NAME, []) is None
