"""Questions to the published values: any spelling, several at once, and an error for what there is not."""

import sys

import pytest

import qllm_hf.published as package
from qllm_hf.errors import ConfigError, MissingExtraError
from qllm_hf.published.collection import Published
from qllm_hf.published.query import published
from qllm_hf.published.score import PublishedScore
from qllm_hf.scheme import Scheme

ROW = PublishedScore("long", "x", "", "accuracy", "m", "f", 7, 7, "KV4", 0.5, 0.8, "fraction", "file")


@pytest.mark.parametrize("scheme", ["KV4", "kv4", " Kv4 ", "kv_4", "w16kv4", Scheme(kv=4)])
def test_schemes_in_any_spelling(scheme):
    assert published(scheme=scheme).schemes == ("KV4",)


def test_awq_is_a_scheme_of_its_own():
    assert published(scheme="w3-AWQ").schemes == ("W3-awq",)
    assert published(scheme="W3").schemes == ("W3",)


@pytest.mark.parametrize(
    ("question", "rows", "models"),
    [
        ({}, 5910, 46),
        ({"ability": "long"}, 2471, 9),
        ({"ability": "long_context"}, 2471, 9),
        ({"ability": ("nlp", "dialogue")}, 145 + 254, 41),
        ({"benchmark": "GSM8K"}, 110, 10),
        ({"benchmark": "ARC-Challenge"}, 120, 10),
        ({"emergent": "icl"}, 250, 10),
        ({"emergent": "C-MR"}, 120, 10),
        ({"emergent": ["if", "sc"]}, 574, 18),
        ({"family": "llama-2"}, 1122, 6),
        ({"family": "mixtral", "size": (7, 13)}, 634, 2),
        ({"family": "mixtral", "params": (7, 13)}, 0, 0),
        ({"metric": "mc1"}, 96, 8),
        ({"ability": "emergent", "main": True}, 834, 18),
        ({"model": "meta-llama/Llama-2-7b-chat-hf", "ability": "dialogue"}, 20, 1),
        ({"model": "lmsys/vicuna-7b-v1.5", "subset": "length=16k"}, 20, 1),
        ({"subset": "length=*"}, 816, 8),
        ({"subset": ("round1", "round2"), "scheme": "FP16"}, 26, 13),
    ],
)
def test_questions(question, rows, models):
    found = published(**question)
    assert (len(found), len(found.models)) == (rows, models)


def test_a_dot_in_a_size_is_not_lost():
    assert published(model="facebook/opt-1.3b").models == ("OPT-1.3B",)
    assert published(model="OPT-13B").models == ("OPT-13B",)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"model": "LLaMA2-7C"}, r"model='LLaMA2-7C': .* OPT-125M, .* and 34 more. Did you mean 'LLaMA2-7B'?"),
        ({"family": "lama2"}, "There are OPT, Falcon, LLaMA2, .* Did you mean 'LLaMA2'?"),
        ({"ability": "longg"}, "There are nlp, emergent, trust, dialogue, long. Did you mean 'long'?"),
        ({"ability": "trustworthines"}, "ability='trustworthines'"),
        ({"benchmark": "gsm"}, "Did you mean 'gsm8k'?"),
        ({"metric": "mc3"}, "Did you mean 'mc2'?|Did you mean 'mc1'?"),
        ({"emergent": "maths"}, "There are icl, if, cmr, mmr, sc"),
        ({"scheme": "W5"}, "scheme='W5': nothing was published for it. There are FP16, W8, "),
        ({"scheme": "4bit"}, "scheme='4bit': .* is not understood"),
        ({"subset": "length=5k"}, "subset='length=5k': there is none of this name"),
        ({"params": (13, 6)}, "give \\(from, to\\) in billions"),
        ({"size": (-1, 6)}, "size="),
    ],
)
def test_what_there_is_not(question, message):
    with pytest.raises(ConfigError, match=message):
        published(**question)


def test_a_subset_of_another_benchmark_is_no_error():
    assert len(published(benchmark="gsm8k", subset="round1")) == 0


def test_the_package_can_be_asked_itself():
    assert package(model="OPT-125M") == published(model="OPT-125M")
    assert sys.modules["qllm_hf.published"].published is published


def test_losses():
    assert ROW.relative_loss == pytest.approx(37.5)
    assert ROW.points_lost == pytest.approx(30)
    (percent,) = published(model="LLaMA2-7B", benchmark="gsm8k", scheme="W4")
    assert percent.points_lost == pytest.approx(percent.fp16 - percent.value)
    (round1,) = published(model="LLaMA2-7B-chat", benchmark="mt_bench", scheme="KV4", subset="round1")
    assert round1.points_lost == pytest.approx(10 * (round1.fp16 - round1.value))


def test_a_loss_of_robustness_has_no_relative_loss():
    (row,) = published(model="LLaMA2-7B-chat", benchmark="advglue", metric="acc_drop", subset="adv_rte", scheme="W3")
    assert (row.relative_loss, row.normalised("ours")) == (None, None)
    assert row.points_lost == pytest.approx(100 * (row.value - row.fp16)), "a larger drop is a loss"


def test_normalised_performance_and_whose_chance():
    (row,) = published(model="LLaMA2-7B", benchmark="strategyqa", scheme="W3")
    assert (row.chance(), row.chance("ours")) == (0, 50)
    assert row.normalised() == pytest.approx(row.value / row.fp16)
    assert row.normalised("ours") == row.normalised(50.0) == pytest.approx((row.value - 50) / (row.fp16 - 50))
    (broken,) = published(model="LLaMA2-7B", benchmark="arc-c", scheme="W2") or published(
        model="LLaMA2-7B-chat", benchmark="arc-c", scheme="W2"
    )
    assert broken.value < 25
    assert broken.normalised() == 0.0, "below guessing there is nothing more to lose"
    (lines,) = published(model="Vicuna-7B", subset="length=16k", scheme="KV4")
    assert (lines.normalised(), lines.chance()) == (None, None), "the study plots these raw"
    assert lines.normalised("ours") == pytest.approx(lines.value / lines.fp16)


def test_chance_is_given_in_the_unit_of_the_value():
    assert {row.chance("ours") for row in published(benchmark="mt_bench")} == {1.0}
    assert {row.chance("ours") for row in published(benchmark="ethics")} == {0.5}
    robust = published(benchmark="advglue", metric="acc_after", subset="adv_mnli")
    assert {row.chance("ours") for row in robust} == {1 / 3 * 100}


def test_summary_counts_each_model_once():
    rows = published(benchmark="lost_in_the_middle", scheme="KV4")
    summary = rows.summary(2.0)
    losses = rows.losses()
    assert (summary.models, summary.within) == (9, sum(loss <= 2 for loss in losses.values()))
    assert (summary.low, summary.high) == (min(losses.values()), max(losses.values()))
    assert str(summary).startswith("9 models: mean loss 1.9 %, median ")
    assert published(scheme="FP16").summary() is None


def test_pooled_losses_are_of_the_mean_score():
    pair = Published((ROW, PublishedScore(**{**vars(ROW), "value": 0.1, "fp16": 0.2})))
    assert pair.losses() == {"m": pytest.approx((37.5 + 50) / 2)}
    assert pair.losses(pooled=True) == {"m": pytest.approx(40)}


def test_without_leaves_out_what_is_flagged():
    rows = published(benchmark="longeval_lines", scheme="KV4")
    assert "ChatGLM3-6B" in rows.models
    assert "ChatGLM3-6B" not in rows.without("excluded").models
    assert len(published(benchmark="mt_bench", scheme="W4A4").without("imputed")) == 2


def test_text_says_what_all_rows_share_once_and_explains_flags():
    text = str(published(benchmark="mt_bench", scheme="KV3", subset="round1"))
    assert text.splitlines()[0] == "mt_bench, round1, gpt4_score, score_1_10"
    assert "A05 suspicious: Mistral-7B-instruct and Mixtral-8x7B-instruct have the same" in text
    assert text.count("mt_bench") == 1
    assert "and 5,850 more rows" in str(published())
    assert str(published(benchmark="gsm8k", subset="round1")) == "no published value"


def test_as_dicts_and_as_data_set():
    rows = published(benchmark="gsm8k", scheme="W4")
    dicts = rows.to_dicts()
    assert dicts[0]["flags"] == []
    assert {"model", "value", "fp16", "relative_loss", "normalised", "source", "unit"} <= dicts[0].keys()
    data = rows.to_dataset()
    assert data["model"][:] == [row.model for row in rows]
    assert data[0]["value"] == rows[0].value


def test_without_datasets_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qllm-hf\[eval\]'"):
        published(benchmark="gsm8k").to_dataset()
