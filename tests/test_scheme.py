"""Scheme strings, what they mean, what they refuse, and what they cost in bits."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllm_hf.errors import SchemeError
from qllm_hf.scheme import ALLOWED_BITS, FLOAT_BITS, Scheme, Spec

bits = st.sampled_from((*ALLOWED_BITS, FLOAT_BITS))
schemes = st.builds(
    lambda w, a, kv, w_group, kv_group: Scheme(w, FLOAT_BITS if w == FLOAT_BITS else a, kv, w_group, kv_group),
    bits,
    bits,
    bits,
    st.sampled_from((128, 64, 32, 1, 4096, -1, 0)),
    st.sampled_from((128, 64, 32, 1, 4096, -1)),
)


# Strings


@given(schemes)
def test_string_round_trip(scheme):
    """Every part that is quantized comes back; the group size of a part that is not has no meaning and is dropped."""
    wanted = scheme
    if scheme.w == FLOAT_BITS:
        wanted = replace(wanted, w_group_size=128)
    if scheme.kv == FLOAT_BITS:
        wanted = replace(wanted, kv_group_size=128)
    assert Scheme.parse(str(scheme)) == wanted
    assert str(Scheme.parse(str(scheme))) == str(scheme)


@given(schemes, st.booleans(), st.booleans())
def test_case_spaces_and_underscores_do_not_matter(scheme, upper, spaced):
    text = str(scheme)
    text = text.upper() if upper else text.lower()
    text = re.sub(r"(?<=\d)(?=[KkAa])", " _ ", text) if spaced else text
    assert str(Scheme.parse(f"  {text} ")) == str(scheme)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("FP16", Scheme()),
        ("W8", Scheme(w=8)),
        ("W4", Scheme(w=4)),
        ("W3", Scheme(w=3)),
        ("W2", Scheme(w=2)),
        ("W8A8", Scheme(w=8, a=8)),
        ("W4A8", Scheme(w=4, a=8)),
        ("W4A4", Scheme(w=4, a=4)),
        ("KV8", Scheme(kv=8)),
        ("KV4", Scheme(kv=4)),
        ("KV3", Scheme(kv=3)),
        ("KV2", Scheme(kv=2)),
        ("W8KV4", Scheme(w=8, kv=4)),
        ("W4KV8", Scheme(w=4, kv=8)),
        ("W8A8KV4", Scheme(w=8, a=8, kv=4)),
    ],
)
def test_names_of_the_paper_are_canonical(text, scheme):
    assert Scheme.parse(text) == scheme
    assert str(scheme) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("bf16", "FP16"),
        ("fp32", "FP16"),
        ("W16", "FP16"),
        ("W16A16KV16", "FP16"),
        ("w4a16", "W4"),
        ("W4g128", "W4"),
        ("w4g32kv4g64", "W4g32KV4g64"),
        ("W4G-1", "W4g-1"),
        ("W4g0A8", "W4g0A8"),
        ("KV4g-1", "KV4g-1"),
    ],
)
def test_other_spellings(text, canonical):
    assert str(Scheme.parse(text)) == canonical


def test_a_scheme_is_its_own_parse():
    scheme = Scheme(w=4, w_symmetric=True)
    assert Scheme.parse(scheme) is scheme


@pytest.mark.parametrize("text", ["", "  ", "4", "W", "INT4", "KV4W4", "A8W4", "W4W4", "W4.5", "W-4", "W4A8g32", "W4g"])
def test_strings_that_name_no_scheme(text):
    with pytest.raises(SchemeError, match=rf"scheme {re.escape(repr(text))} is not understood\. Write W<bits>, .*FP16"):
        Scheme.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("W9", "scheme 'W9': w=9: allowed are 2, 3, 4, 5, 6, 7, 8 bits, or 16 to stay in floating point."),
        ("W1", "scheme 'W1': w=1: allowed are"),
        ("KV0", "scheme 'KV0': kv=0: allowed are"),
        ("A8", "scheme 'A8': a=8 with w=16: activations are quantized only together with weights. Give w as well"),
        ("W4A32", "scheme 'W4A32': a=32: allowed are"),
        ("W4g-2", "scheme 'W4g-2': w_group_size=-2: give a positive number of elements, -1 for one group per row"),
        ("KV4g0", "scheme 'KV4g0': kv_group_size=0: keys and values arrive token by token"),
        ("KV4g-3", "scheme 'KV4g-3': kv_group_size=-3: give a positive number of elements, -1 for one group per row."),
    ],
)
def test_strings_that_name_an_impossible_scheme(text, message):
    with pytest.raises(SchemeError, match=re.escape(message)):
        Scheme.parse(text)


@pytest.mark.parametrize("value", [4, None, b"W4", ["W4"]])
def test_what_is_no_string(value):
    with pytest.raises(SchemeError, match=re.escape(f"scheme={value!r} is a {type(value).__name__}, not a string")):
        Scheme.parse(value)


# Values


@pytest.mark.parametrize(
    "values",
    [
        {"w": True},
        {"w": "4"},
        {"w": None},
        {"w": 4, "w_group_size": True},
        {"w": 4, "w_group_size": 32.0},
        {"w": 4, "w_group_size": "32"},
        {"kv": 4, "kv_group_size": None},
        {"w": 4, "w_symmetric": 1},
        {"w": 4, "paper_exact": "yes"},
    ],
)
def test_values_of_a_wrong_kind(values):
    name, value = list(values.items())[-1]
    with pytest.raises(SchemeError, match=re.escape(f"{name}={value!r}: ")):
        Scheme(**values)


@pytest.mark.parametrize("make", [lambda: Scheme(w=4.0), lambda: Spec(4.0)], ids=["Scheme", "Spec"])
def test_bits_that_are_no_integer(make):
    with pytest.raises(SchemeError):
        make()


@pytest.mark.parametrize("wrong", [1, 9, 16, 0, -4, True, "4", None])
def test_spec_takes_2_to_8_bits(wrong):
    with pytest.raises(SchemeError, match=re.escape(f"bits={wrong!r}: quantized tensors take 2 to 8 bits.")):
        Spec(wrong)


@pytest.mark.parametrize("wrong", [-2, 32.0, "32", None, False])
def test_spec_group_size(wrong):
    with pytest.raises(SchemeError, match=re.escape(f"group_size={wrong!r}: give a positive number of elements")):
        Spec(4, wrong)


def test_specs_of_the_three_tensors():
    scheme = Scheme(4, 8, 3, 32, 64, True, False, True, paper_exact=True)
    assert scheme.weight == Spec(4, 32, symmetric=True, paper_exact=True)
    assert scheme.activation == Spec(8, -1, symmetric=False, paper_exact=True)  # per token
    assert scheme.kv_spec(64) == Spec(3, 64, symmetric=True, paper_exact=True)
    nothing = Scheme()
    assert (nothing.weight, nothing.activation, nothing.kv_spec(64)) == (None, None, None)


def test_schemes_are_values():
    assert len({Scheme(w=4), Scheme.parse("W4"), Scheme(w=4, kv=8)}) == 2
    with pytest.raises(AttributeError):
        Scheme().w = 4


# Groups of keys and values


@given(st.integers(1, 600), st.integers(1, 300))
def test_kv_group_is_the_largest_divisor(head_dim, wanted):
    group = Scheme(kv=4, kv_group_size=wanted).kv_spec(head_dim).group_size
    assert group == max(size for size in range(1, wanted + 1) if head_dim % size == 0)


@pytest.mark.parametrize(
    ("head_dim", "wanted", "group"),
    [(128, 128, 128), (64, 128, 64), (80, 128, 80), (256, 128, 128), (80, 64, 40), (96, 64, 48), (192, 128, 96)],
)
def test_kv_groups_of_common_heads(head_dim, wanted, group):
    assert Scheme(kv=4, kv_group_size=wanted).kv_spec(head_dim).group_size == group


def test_kv_group_of_a_whole_head():
    assert Scheme(kv=4, kv_group_size=-1).kv_spec(576).group_size == 576


# Bits


@pytest.mark.parametrize(
    ("spec", "length", "per_element"),
    [
        (Spec(4, 128), 4096, 4 + 24 / 128),
        (Spec(4, 128, symmetric=True), 4096, 4 + 16 / 128),
        (Spec(3, 32), 4096, 3 + 24 / 32),
        (Spec(2, 64), 4096, 2 + 24 / 64),
        (Spec(8, -1), 4096, 8 + 24 / 4096),
        (Spec(8, 0), 4096, 8),
        (Spec(4, 128), 172, (43 * 16 + 2 * 24) / 172),  # 32 words for 128 codes and 11 for the other 44
    ],
)
def test_bits_per_element(spec, length, per_element):
    assert spec.bits_per_element(length) == per_element


def test_wider_scales_cost_more():
    assert Spec(4, 128).row_bits(4096, scale_bits=32) - Spec(4, 128).row_bits(4096) == 16 * 32
