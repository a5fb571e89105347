"""Which word a tensor gets, and what is said of it: on rows made by hand, and on models whose loss is known."""

import math

import pytest
import torch

from qllm_hf.analysis.gathering import Row
from qllm_hf.analysis.noise import BITS
from qllm_hf.analysis.streaming import Stream
from qllm_hf.analysis.verdict import WORDS, counts, explain, judge, limits, reasons


def row(kind="W", name="model.layers.0.mlp.down_proj", effect=30.0, measure="output_sqnr", x=None) -> Row:
    """A row whose effect is the same at all bits, or as {bits: effect}."""
    stream = Stream(name, 8)
    stream.add(torch.randn(400, 8) if x is None else x)
    effects = dict(effect) if isinstance(effect, dict) else dict.fromkeys(BITS, effect)
    return Row(
        kind=kind,
        name=name,
        block=0,
        layer=name.removeprefix("model.layers.0."),
        readers=(),
        summary=stream.summary(),
        sqnr=effects,
        effect=effects,
        measure=measure,
        channel_low=stream.channel_low,
        channel_high=stream.channel_high,
    )


@pytest.mark.parametrize("kind", ["W", "A", "K", "V"])
def test_more_decibels_are_better(kind):
    holds, breaks = limits(row(kind, measure="sqnr"))
    words = [judge(row(kind, effect=value, measure="sqnr"))[4] for value in (holds, holds - 0.1, breaks, breaks - 0.1)]
    assert words == ["holds", "suffers", "suffers", "breaks"]


def test_fewer_nats_are_better():
    holds, breaks = limits(row("K", measure="logit_noise"))
    words = [
        judge(row("K", effect=value, measure="logit_noise"))[4] for value in (holds, holds + 0.1, breaks, breaks + 0.1)
    ]
    assert words == ["holds", "suffers", "suffers", "breaks"]


def test_nothing_lost_holds_and_what_is_never_quantized_is_not_judged():
    assert set(judge(row(effect=None)).values()) == {"holds"}
    assert judge(row("V", effect={})) == {}
    assert counts([row("V", effect={})]) == {}
    assert explain([row("V", effect={})]) == []


def test_sentences_name_the_layers_that_do_not_hold_and_why():
    outlier = torch.randn(400, 8)
    outlier[:, 5] *= 80
    fine = [row("A", f"model.layers.{index}.mlp.up_proj") for index in range(3)]
    bad = row("A", "model.layers.1.mlp.down_proj", {2: 1.0, 3: 5.0, 4: 8.0, 6: 25.0, 8: 40.0}, x=outlier)
    said = explain([*fine, bad])
    assert said[0] == "A: 8 and 6 bits hold in all 4 layers."
    assert said[1].startswith("A: at 4 bits 1 of 4 breaks: model.layers.1.mlp.down_proj (8.0 dB, channel 5 is ")
    assert "times the median one" in said[1]
    assert not any("up_proj" in sentence for sentence in said)
    assert reasons(fine[0]) == []


def test_counts_add_up():
    rows = [row(effect=value) for value in (30.0, 12.0, 1.0, 1.0)]
    assert counts(rows)["W"][4] == {"holds": 1, "suffers": 1, "breaks": 2}
    assert all(sum(found.values()) == 4 and tuple(found) == WORDS for found in counts(rows)["W"].values())


@pytest.fixture(scope="module")
def measured(stories, tinystories_text):
    """Rows of a trained model, and its loss as a function of the scheme."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from qllm_hf import QllmConfig, quantize_
    from qllm_hf.analysis.tensors import measure
    from qllm_hf.methods.blocks import Blocks, block_list
    from qllm_hf.methods.calibration import read_calibration
    from qllm_hf.methods.residence import InMemory
    from qllm_hf.plan import make_plan

    def load():
        return AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()

    text = read_calibration(tinystories_text, AutoTokenizer.from_pretrained(stories), samples=4, seqlen=128)

    @torch.no_grad()
    def loss(scheme=None) -> float:
        model = load()
        if scheme is not None:
            quantize_(model, scheme)
        return float(model(text.ids, labels=text.ids, use_cache=False).loss)

    model = load()
    blocks = Blocks(model, block_list(model, make_plan(model, QllmConfig(w=4))))
    rows = measure(model, blocks=blocks, residence=InMemory(blocks.modules), calibration=text)
    return rows, loss


@pytest.mark.parametrize(("kind", "scheme"), [("W", "W{}"), ("A", "W8A{}"), ("K", "KV{}")])
def test_words_go_with_the_loss_of_a_trained_model(measured, kind, scheme):
    """Where all layers hold, the loss stays; where all break, the model is lost; fewer bits never help."""
    rows, loss = measured
    found, exact = counts(rows)[kind], loss()
    rise = {bits: loss(scheme.format(bits)) - exact for bits in (8, 4, 2)}
    total = sum(found[8].values())
    assert found[8]["holds"] == total
    assert abs(rise[8]) < 0.02
    assert found[2]["breaks"] == total
    assert rise[2] > 1.0
    assert rise[8] < rise[4] < rise[2]
    for row in (row for row in rows if row.kind == kind):
        worse = [row.effect[bits] * (1 if row.measure == "logit_noise" else -1) for bits in sorted(BITS)]
        assert worse == sorted(worse, reverse=True)
        assert all(math.isfinite(value) for value in worse)
