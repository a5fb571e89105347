"""An outlier that is planted in a trained model is found, named, and judged as its loss deserves."""

import copy

import pytest
import torch
from tiny_models import on_one_thread
from transformers import AutoModelForCausalLM, AutoTokenizer

from qllm_hf import QllmConfig, quantize_
from qllm_hf.analysis.compare import compare, conclusion, weights_of
from qllm_hf.analysis.tensors import measure
from qllm_hf.analysis.verdict import counts, explain, judge, reasons
from qllm_hf.methods.blocks import Blocks, block_list
from qllm_hf.methods.calibration import Calibration, token_blocks
from qllm_hf.methods.residence import InMemory
from qllm_hf.plan import make_plan

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

BLOCK, CHANNEL, FACTOR = 2, 7, 80.0
PLANTED = f"model.layers.{BLOCK}.self_attn.q_proj"


@torch.no_grad()
def planted_in(model, blocks):
    """A copy. One channel of what attention reads is large, and the weights that read it small: the same function."""
    model = copy.deepcopy(model)
    for layer in (model.model.layers[block] for block in blocks):
        layer.input_layernorm.weight[CHANNEL] *= FACTOR
        for name in ("q_proj", "k_proj", "v_proj"):
            layer.self_attn.get_submodule(name).weight[:, CHANNEL] /= FACTOR
    return model


@pytest.fixture(scope="module")
def both(stories, tinystories_text):
    """(model, rows) without and with the outlier, and the tokens."""
    plain = AutoModelForCausalLM.from_pretrained(stories).eval()
    ids = token_blocks(tinystories_text, AutoTokenizer.from_pretrained(stories), samples=8, seqlen=64)
    found = []
    for model in (plain, planted_in(plain, [BLOCK])):
        blocks = Blocks(model, block_list(model, make_plan(model, QllmConfig(w=4))))
        residence = InMemory(blocks.modules)
        found.append((model, measure(model, blocks=blocks, residence=residence, calibration=Calibration(ids, "x"))))
    return found, ids


@torch.no_grad()
def loss(model, ids, scheme=None) -> float:
    model = copy.deepcopy(model)
    if scheme is not None:
        quantize_(model, scheme)
    return float(model(ids, labels=ids, use_cache=False).loss)


def test_the_function_is_the_same_and_four_bits_are_not(both):
    """A layer that breaks costs something; all of them, the model."""
    ((plain, _), (planted, _)), ids = both
    everywhere = planted_in(plain, range(5))
    exact = [loss(model, ids) for model in (plain, planted, everywhere)]
    assert exact == pytest.approx([exact[0]] * 3, abs=1e-3)
    none, one, five = (loss(model, ids, "W8A4") - exact[0] for model in (plain, planted, everywhere))
    assert none < 0.25
    assert none + 0.1 < one < five
    assert five > 2.0


def test_it_is_found_and_named(both):
    ((_, plain), (_, planted)), _ = both
    before, after = ({row.name: row for row in rows if row.kind == "A"} for rows in (plain, planted))
    assert (judge(before[PLANTED])[4], reasons(before[PLANTED])) == ("holds", [])
    assert judge(after[PLANTED])[4] == "breaks"
    assert judge(after[PLANTED])[8] == "holds"
    assert reasons(after[PLANTED])[0].startswith(f"channel {CHANNEL} is ")
    (sentence,) = (each for each in explain(planted) if each.startswith("A: at 4 bits"))
    assert f"1 of {len(after)} breaks: {PLANTED}/k_proj/v_proj (" in sentence
    assert not any("A: at 4 bits" in each and "break" in each for each in explain(plain))
    for name in after.keys() - {PLANTED}:
        assert judge(after[name]) == judge(before[name]), "other layers are as they were"


def test_the_tensor_alone_would_not_say_so(both):
    """The outlier's own energy is signal too: 8 dB more than what reaches the output."""
    (_, (_, planted)), _ = both
    (row,) = (row for row in planted if (row.kind, row.name) == ("A", PLANTED))
    assert row.sqnr[4] > row.effect[4] + 8


def test_weights_do_not_suffer_from_it(both):
    ((_, plain), (_, planted)), _ = both
    assert counts(plain)["W"][4] == counts(planted)["W"][4]


def test_comparison_says_what_rises_and_what_was_not_seen(both):
    ((_, plain), (_, planted)), _ = both
    changes = {(change.kind, change.figure, change.of): change for change in compare(plain, planted)}
    assert changes["A", "absmax", "median"].direction in ("stays", "rises")
    assert changes["V", "kurtosis", "median"].direction == "stays"
    assert not changes["V", "kurtosis", "median"].as_found
    only = [row for row in planted if row.name == PLANTED], [row for row in plain if row.name == PLANTED]
    fall, rise = (
        {change.kind: change for change in compare(*pair) if (change.figure, change.of) == ("kurtosis", "largest")}
        for pair in (only, only[::-1])
    )
    assert (fall["A"].direction, fall["A"].as_found) == ("falls", False)
    assert (rise["A"].direction, rise["A"].as_found) == ("rises", True)
    said = conclusion(compare(*only))
    assert "Kurtosis of the median layer" in said
    assert "does not in A" in said
    assert "Of K, V nothing was compared." in said
    assert "differ in more than" not in said
    assert "their size: vocabulary (1, 2)" in conclusion(compare(*only), ["vocabulary (1, 2)"])
    assert weights_of(plain) == 226_560
