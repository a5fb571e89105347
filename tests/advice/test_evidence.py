"""What is expected of a scheme is what was published of models like this one, and says so where it is anything else."""

from dataclasses import replace
from statistics import median

import pytest

from qllm_hf.advice.evidence import expected_loss
from qllm_hf.advice.like import BENCHMARKS, LENGTHS, losses_like, published_length, published_loss
from qllm_hf.advice.loss import overall
from qllm_hf.advice.situation import TOPICS, Situation
from qllm_hf.published.query import published
from qllm_hf.published.read import models

SEVEN = Situation(("dialogue",), 7)


def test_every_topic_has_benchmarks_and_every_length_is_published():
    assert set(BENCHMARKS) == set(TOPICS)
    lengths = {row.subset for row in published(benchmark="longeval_lines", subset="length=*")}
    assert {f"length={name}" for name in LENGTHS} == lengths


@pytest.mark.parametrize(("context", "length"), [(1, "4k"), (4096, "4k"), (4097, "6k"), (16384, "16k"), (10**6, "16k")])
def test_the_next_longer_published_length_speaks_of_a_context(context, length):
    assert published_length(context) == length


def test_the_loss_is_the_median_of_the_size_class():
    rows = published(benchmark="mt_bench", scheme="KV4", size=(6, 13))
    losses = rows.losses(pooled=True)
    loss = published_loss(SEVEN, "dialogue", "KV4")
    assert (loss.percent, loss.kind) == (median(losses.values()), "published")
    assert (loss.summary.models, loss.summary.high) == (len(losses), max(losses.values()))
    assert loss.what == "mt_bench, 6B to 13B"


def test_a_family_with_two_models_counts_where_it_loses_more():
    def at_16k(family: str) -> Situation:
        return Situation(("long",), 7, context=16384, family=family)

    class_only = published_loss(at_16k(""), "long", "KV8")
    of_family = published_loss(at_16k("LongChat"), "long", "KV8")
    assert class_only.percent < 2 < 50 < of_family.percent
    assert of_family.what == "LongEval at 16k, LongChat"
    lines = losses_like(at_16k("LongChat"), "longeval_lines", "KV8")[0]
    assert set(lines) == {"6B to 13B", "LongChat"}
    assert set(lines["LongChat"]) == {"LongChat-7B", "LongChat-13B"}
    assert set(losses_like(at_16k("Mistral"), "longeval_lines", "KV8")[0]) == {"6B to 13B"}, "one model is no family"


def test_losses_follow_the_length_of_the_context():
    percents = [
        published_loss(Situation(("long",), 7, context=tokens, family="LongChat"), "long", "KV8").percent
        for tokens in LENGTHS.values()
    ]
    assert percents[0] < 2 < percents[2] < percents[-1]


def test_excluded_values_do_not_count():
    situation = Situation(("long",), 6, context=4096)
    assert "ChatGLM3-6B" not in losses_like(situation, "longeval_lines", "KV4")[0]["6B to 13B"]
    large = Situation(("trust",), 70)
    assert "LLaMA2-70B-chat" not in losses_like(large, "advglue", "KV4")[0]["13B and above"]
    assert "LLaMA2-70B-chat" in losses_like(large, "advglue", "W4")[0]["13B and above"]


def test_a_mixture_of_experts_looks_at_7b():
    found = losses_like(Situation(("nlp",), 46.7, moe=True), "lambada", "W4")[0]
    assert {models()[model].size_class for model in found["6B to 13B"]} == {"6B to 13B"}
    assert "Mixtral-8x7B" in found["6B to 13B"]


def test_w_and_kv_together_are_added_up_where_they_were_not_published():
    losses = {scheme: losses_like(SEVEN, "mt_bench", scheme)[0]["6B to 13B"] for scheme in ("W4", "KV8", "W4KV8")}
    for model, loss in losses["W4KV8"].items():
        assert loss == pytest.approx(losses["W4"][model] + losses["KV8"][model])
    assert expected_loss(SEVEN, "dialogue", "W4KV8").kind == "parts"
    at_16k = Situation(("long",), 7, context=16384)
    lines, all_published = losses_like(at_16k, "longeval_lines", "W4KV8")
    (known,) = published(benchmark="longeval_lines", scheme="W4KV8", model="Vicuna-7B", subset="length=16k")
    assert lines["6B to 13B"]["Vicuna-7B"] == pytest.approx(known.relative_loss), "published goes before a sum"
    assert (len(lines["6B to 13B"]), all_published) == (5, False)


def test_sums_are_near_what_was_published():
    """The one place where both are known: not far, and rather too high than too low."""
    lines = published(benchmark="longeval_lines", subset="length=*")
    models_with_both = lines.where(lambda row: row.scheme == "W4KV4").models

    def mean(scheme: str) -> float:
        losses = lines.where(lambda row: row.scheme == scheme and row.model in models_with_both).losses()
        return sum(losses.values()) / len(losses)

    assert mean("W4KV4") == pytest.approx(28.4, abs=0.05)
    assert (mean("W4"), mean("KV4")) == (pytest.approx(5.7, abs=0.05), pytest.approx(25.6, abs=0.05))
    for w, kv in (("W8", "KV8"), ("W4", "KV8"), ("W8", "KV4"), ("W4", "KV4")):
        assert mean(w + kv) - 0.1 <= mean(w) + mean(kv) <= mean(w + kv) + 6


@pytest.mark.parametrize("topic", ["nlp", "icl", "if", "mr", "sc", "trust", "dialogue", "long"])
@pytest.mark.parametrize("params_b", [2, 7, 70])
@pytest.mark.parametrize(
    ("scheme", "parts"),
    [
        ("W8KV8", ("W8", "KV8")),
        ("W4KV8", ("W4", "KV8")),
        ("W4KV4", ("W4", "KV4")),
        ("W4A8", ("W4",)),
        ("W8A8", ("W8",)),
        ("W4A8KV8", ("W4A8", "W4KV8", "KV8")),
    ],
)
def test_what_is_quantized_more_is_never_expected_to_lose_less(topic, params_b, scheme, parts):
    situation = Situation((topic,), params_b, context=16384)
    together = expected_loss(situation, topic, scheme)
    if together.percent is not None:
        known = [loss.percent for part in parts if (loss := published_loss(situation, topic, part)) is not None]
        assert together.percent >= max(known, default=0)


def test_noise_in_which_activations_seem_to_help_is_not_believed():
    """On LAMBADA nothing was published for W4A8; the study's rule allows it, but W4 alone already loses more."""
    situation = Situation(("nlp",), 7)
    w4, w4a8 = (expected_loss(situation, "nlp", scheme) for scheme in ("W4", "W4A8"))
    assert w4.percent > 2
    assert (w4a8.percent, w4a8.kind) == (w4.percent, "parts")


def test_where_nothing_of_the_size_was_published_the_nearest_size_stands_in_and_says_so():
    loss = published_loss(Situation(("mr",), 2), "mr", "W4")
    assert loss.what == "gsm8k, 6B to 13B (none below 6B)"
    assert loss.percent == published_loss(Situation(("mr",), 7), "mr", "W4").percent


def test_a_rule_is_the_evidence_where_there_are_no_numbers():
    loss = expected_loss(Situation(("nlp",), 7), "nlp", "KV4")
    assert (loss.percent, loss.kind, loss.summary) == (2.0, "rule", None)
    assert "R1" in loss.what
    assert expected_loss(Situation(("nlp",), 7), "nlp", "KV3").percent is None, "no rule recommends that"
    assert expected_loss(Situation(("nlp",), 7), "nlp", "W8KV4").kind == "rule"
    partly = expected_loss(Situation(("nlp",), 7), "nlp", "W4KV8")
    w4 = expected_loss(Situation(("nlp",), 7), "nlp", "W4").percent
    assert (partly.kind, partly.percent) == ("parts", pytest.approx(w4 + 2.0))
    assert expected_loss(Situation(("nlp",), 7), "nlp", "W4KV3").percent is None


def test_a_method_is_known_only_if_it_was_measured():
    loss = expected_loss(SEVEN, "dialogue", "W3+gptq")
    assert (loss.percent, loss.kind) == (None, "none")


def test_the_float_model_loses_nothing():
    assert expected_loss(SEVEN, "dialogue", "FP16").percent == 0


def test_the_worst_topic_counts_and_an_unknown_one_is_the_worst():
    losses = tuple(expected_loss(Situation(("all",), 7), topic, "W4") for topic in TOPICS)
    assert overall(losses).percent == max(loss.percent for loss in losses)
    unknown = replace(losses[0], percent=None, kind="none")
    assert overall((*losses, unknown)) is unknown
