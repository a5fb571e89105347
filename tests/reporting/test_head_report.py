"""A packed output head in reports: what it takes, what the float model took, and what is said about it."""

import json

import pytest
import torch
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM

import qllm_hf
from qllm_hf.checkpoint import read_checkpoint
from qllm_hf.loading import save_model
from qllm_hf.publishing.quantized import read_quantized
from qllm_hf.publishing.sections import _sizes
from qllm_hf.reporting.model import plan_report, report
from qllm_hf.reporting.tensors import parameter_bytes
from qllm_hf.scheme import Spec

tied_or_not = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
HEAD = 256 * 64
GUARD = 1


def floats(tied: bool):
    config = tiny_config("llama")
    config.tie_word_embeddings = tied
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def config(head: bool = True) -> qllm_hf.QllmConfig:
    return qllm_hf.QllmConfig(w=4, a=8, w_group_size=32, quantize_head=head)


@tied_or_not
def test_bytes_before_and_after(tied, tmp_path):
    model = floats(tied)
    before, without = report(model), plan_report(model, config(head=False))
    planned = plan_report(model, config())
    packed = qllm_hf.quantize_(model, config())
    result = report(packed)
    assert {**planned.to_dict(), "origin": "measured"} == result.to_dict(), "a plan must predict what is measured then"
    assert (result.elements, result.parameter_bytes_before) == (before.elements, before.parameter_bytes_after)
    size = HEAD * Spec(4, 32).bits_per_element(64, 32) / 8
    assert result.parameter_bytes_after == without.parameter_bytes_after + size - (0 if tied else 4 * HEAD)
    assert result.parameter_bytes_after == parameter_bytes(packed)
    (head,) = [group for group in result.quantized if group.kind == "head"]
    assert (head.weights, head.elements, head.bits, head.activation_bits) == (1, HEAD, 4, 16)
    assert (head.bytes_before, head.bytes_after) == (0 if tied else 4 * HEAD, size)
    assert result.parameter_bytes_before == sum(g.bytes_before for g in result.quantized) + sum(
        g.bytes for g in result.kept
    )
    # what is said of the linear weights leaves the head out, quantized or not
    for name in ("linear_bytes_before", "linear_bytes_after", "linear_coverage"):
        assert getattr(result, name) == getattr(without, name)
    more = result.parameter_coverage - without.parameter_coverage
    assert more == pytest.approx(0 if tied else HEAD / before.elements)
    assert result.bits_per_weight == pytest.approx(result.bits_per_weight_expected, rel=1e-3)
    checkpoint = read_checkpoint(save_model(packed, None, tmp_path / "out"))
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) == result.parameter_bytes_after + GUARD
    assert report(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) == result


@tied_or_not
def test_what_is_said(tied):
    text = " ".join(str(plan_report(floats(tied), config())).split())
    assert "lm_head: the output head is rounded to nearest, and its input stays in floating point" in text
    assert ("the packed head is stored beside it" in text) == tied
    assert "output head or tied to the embedding" not in text
    plain = " ".join(str(plan_report(floats(tied), config(head=False))).split())
    assert "output head or tied to the embedding" in plain
    assert "the output head is rounded" not in plain


@tied_or_not
def test_a_folder_says_the_same_without_its_weights(tied, tmp_path):
    packed = qllm_hf.quantize_(floats(tied), config())
    saved = read_quantized(save_model(packed, None, tmp_path / "out"))
    assert {**saved.report.to_dict(), "origin": "measured"} == report(packed).to_dict()
    assert "| head" in _sizes(saved)
    assert json.loads(json.dumps(saved.report.to_dict())) == saved.report.to_dict()
