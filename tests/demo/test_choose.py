"""The recommender as a form."""

import pytest

from qllm_hf.advice.recommend import recommend
from qllm_hf.demo.choose import Form, advice_for, answer_html, command_of, evidence_html, sizes_for
from qllm_hf.demo.host import make_host
from qllm_hf.errors import ConfigError


@pytest.fixture(scope="module")
def host():
    return make_host()


@pytest.fixture(scope="module")
def form():
    return Form(model="reference", abilities=("Dialogue",), context="1k", batch=2, memory="8MB")


@pytest.fixture(scope="module")
def advice(host, form):
    return advice_for(host, form)


def test_the_form_asks_what_the_command_asks(advice, form):
    same = recommend("reference", abilities="dialogue", context="1k", batch=2, memory="8MB", tolerance="2%")
    assert advice.to_dict() == same.to_dict()
    assert command_of(form) == (
        "qllm-hf recommend reference --abilities dialogue --context 1k --batch 2 --memory 8MB --tolerance 2%"
    )


def test_the_curve_goes_through_the_candidates(host, form, advice):
    sizes = sizes_for(host, form, advice)
    assert {"FP16", "KV4", advice.scheme} <= sizes.keys()
    for scheme, size in sizes.items():
        each = advice.candidate(scheme)
        assert (size.weight_bytes, size.kv_bytes(1024, 2)) == (each.weight_bytes, each.kv_bytes)


def test_the_answer_says_what_why_and_from_where(host, form, advice):
    answer, evidence = answer_html(form, advice), evidence_html(host, form, advice)
    assert f'<p class="qllm-big">{advice.scheme}</p>' in answer
    assert command_of(form) in answer
    assert "<svg" in evidence
    assert evidence.count('class="qllm-chosen"') == 1
    assert "arXiv 2402.18158" in evidence


def test_what_was_typed_comes_back_as_text(host):
    form = Form(model="reference", memory="8MB", context="1k")
    page = answer_html(Form(model="reference", memory="<script>1</script>"), advice_for(host, form))
    assert "<script" not in page and "&lt;script" in page


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"params": 0.0}, "give the number of parameters|params"),
        ({"memory": "much"}, "much"),
        ({"context": "-1"}, "-1"),
        ({"model": "/etc/passwd"}, "no model that this page can load"),
        ({"abilities": ("cooking",)}, "cooking"),
        ({"measured": "/etc"}, "no results '/etc' on this page"),
    ],
)
def test_values_that_cannot_be_are_explained(host, values, words):
    with pytest.raises(ConfigError, match=words):
        advice_for(host, Form(**values))


def test_nothing_fits(host):
    form = Form(model="reference", memory="1kB")
    advice = advice_for(host, form)
    assert "Nothing fits" in answer_html(form, advice)
    assert "<svg" in evidence_html(host, form, advice)
